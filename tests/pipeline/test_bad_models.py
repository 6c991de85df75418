"""Models and chat templates that cannot be used, or must not be."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
from driver import Workplace, files_in, luthier
from spoil import AGAIN, Bomb, Spoil, change, cut, rename

ANOTHER = "change what it refuses, or name another template: model.chat_template: chatml"
SHIPPED = "name one we ship (model.chat_template: chatml or instruction-response), or a Jinja file"
ENDING = "name a template that does: model.chat_template: chatml, or a Jinja file that ends each answer with eos_token"
KNOWN = "It has: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def into_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(folder / "ran")))


MODELS: dict[str, tuple[Spoil, str, str]] = {
    "no config": (
        lambda m: (m / "config.json").unlink(),
        "M: has no config.json",
        "name the folder of a transformers model, or: luthier fetch REF",
    ),
    "a config that is no JSON": (
        lambda m: cut(m / "config.json", 1),
        "M/config.json: is damaged: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        AGAIN,
    ),
    "a config that is a list": (
        lambda m: (m / "config.json").write_text("[]"),
        "M/config.json: holds no JSON object",
        AGAIN,
    ),
    "a config that names code on a hub": (
        lambda m: change(m / "config.json", attn_implementation="stranger/kernel"),
        "M/config.json: `attn_implementation` names code on a hub, which would be fetched and run",
        "delete `attn_implementation` from it: Luthier chooses by itself",
    ),
    "a vocabulary of another size": (
        lambda m: change(m / "config.json", vocab_size=300),
        "M: the weight files do not fit config.json: 2 of its tensors are not there, first lm_head.weight",
        "fetch the model again",
    ),
    "stop tokens that are none": (
        lambda m: change(m / "generation_config.json", eos_token_id=["x"]),
        "M/generation_config.json: `eos_token_id` is ['x'], not a token's number or a list of them",
        "correct it, or fetch the file again",
    ),
    "truncated weights": (
        lambda m: cut(m / "model.safetensors", -100),
        "M/model.safetensors: is cut: it has 453,884 bytes, and its header names 453,984",
        AGAIN,
    ),
    "weights with a damaged header": (
        lambda m: (m / "model.safetensors").write_bytes(b"\xff" * 8 + (m / "model.safetensors").read_bytes()[8:]),
        "M/model.safetensors: is damaged: its header does not fit into its 453,984 bytes",
        AGAIN,
    ),
    "weights that are something else": (
        lambda m: (m / "model.safetensors").write_bytes((20).to_bytes(8, "little") + b"[1, 2, 3]" * 9),
        "M/model.safetensors: is damaged: its header is not that of safetensors",
        AGAIN,
    ),
    "a shard that is missing": (
        lambda m: (
            rename(m, "model.safetensors", "model-00001-of-00002.safetensors"),
            (m / "model.safetensors.index.json").write_text(
                json.dumps(
                    {"metadata": {}, "weight_map": {f"{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}}
                )
            ),
        ),
        "M/model-00002-of-00002.safetensors: is not there",
        AGAIN,
    ),
    "shards outside of the folder": (
        lambda m: (
            rename(m, "model.safetensors", "m.safetensors"),
            (m / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../m.safetensors"}})),
        ),
        "M/model.safetensors.index.json: is damaged: it names no weight files",
        AGAIN,
    ),
    "shards without their index": (
        lambda m: rename(m, "model.safetensors", "model-00001-of-00002.safetensors"),
        "M: has weights under a name that transformers does not look for (model-00001-of-00002.safetensors)",
        "fetch it again whole, or give the file its name: model.safetensors",
    ),
    "weights that are a pickle": (
        into_pickle,
        "M: holds only pickled weights (pytorch_model.bin), which can run code",
        "use a model published as safetensors",
    ),
    "a damaged tokenizer": (
        lambda m: cut(m / "tokenizer.json", 1),
        "M: the tokenizer cannot be loaded: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
        "check the folder, or fetch the model again",
    ),
    "no chat template": (
        lambda m: (m / "chat_template.jinja").unlink(),
        "M: the tokenizer has no chat template, so it does not say how a conversation is written",
        SHIPPED,
    ),
}
TEMPLATES = {
    "that never ends a turn": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "the template puts no end-of-turn token behind an answer: the model would never learn to stop",
        ENDING,
    ),
    "with a mistake": ("{% for m in messages %}{{ m.role }", "cannot write this conversation: unexpected '}'", ANOTHER),
    "that fails": (
        "{{ messages + 1 }}",
        'cannot write this conversation: can only concatenate list (not "int") to list',
        ANOTHER,
    ),
    "that calls itself": (
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "cannot write this conversation: it calls itself without end",
        ANOTHER,
    ),
    "that fills the memory": ("{{ 'a' * (10**14) }}", "cannot write this conversation: MemoryError", ANOTHER),
    "that reaches for Python": (
        "{{ ''.__class__.__mro__ }}",
        "cannot write this conversation: access to attribute '__class__' of 'str' object is unsafe.",
        ANOTHER,
    ),
    "that reaches for the system": (
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "cannot write this conversation: access to attribute '__init__' of 'type' object is unsafe.",
        ANOTHER,
    ),
}
for _name, (_text, _what, _fix) in TEMPLATES.items():
    MODELS[f"a template {_name}"] = (
        lambda m, text=_text: (m / "chat_template.jinja").write_text(text, encoding="utf-8"),  # type: ignore[misc]
        f"chat template: {_what}",
        _fix,
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_refused(shop: Workplace, tmp_path: Path, name: str) -> None:
    """Exit status 2, one problem that names the file, no traceback, nothing of a run, and no code run."""
    spoil, what, fix = MODELS[name]
    model = shutil.copytree(shop.model, tmp_path / "m")
    spoil(model)
    before = files_in(model)
    output = tmp_path / "run"
    done = luthier("train", shop.recipe("bad-model", model={"ref": str(model)}), "--set", f"output={output}")
    assert (done.status, done.err) == (
        2,
        f"✗ {what}\n  → {fix}\n".replace("M:", f"{model}:").replace("M/", f"{model}/"),
    )
    assert files_in(output) <= {"run.lock"}
    assert files_in(model) == before


def test_a_model_that_is_not_there(shop: Workplace, tmp_path: Path) -> None:
    shutil.copytree(shop.model, tmp_path / "qwen")
    done = luthier("data", shop.rows, "-m", tmp_path / "qwne")
    assert (done.status, done.err) == (
        2,
        f"✗ {tmp_path}/qwne: there is no such file or folder\n"
        f"  → did you mean {tmp_path}/qwen? Otherwise: a hub's model is written `owner/name`, the bundled one "
        "bundled:smollm2-135m-instruct\n",
    )


def test_a_template_whose_prompt_is_not_the_beginning_of_the_answer(shop: Workplace, tmp_path: Path) -> None:
    """Which tokens are the answer would be a guess: every row says so, twenty are named."""
    template = tmp_path / "t.jinja"
    template.write_text(TURNS + PROMPT.replace("assistant\n", "assistant\n<think>"), encoding="utf-8")
    done = luthier(
        "data", shop.rows, "-m", shop.model, "--set", f"model.chat_template={template}", "--set", "data.holdout=0"
    )
    told = done.err.splitlines()
    assert (done.status, len(told)) == (2, 42)
    assert told[:2] == [
        f"✗ chat template, {shop.rows}, line 1: the prompt goes on with '<think>' and the text with the answer with "
        "'I make violins in Cremona.<|im_end|>\\n', so which tokens to train would be a guess",
        "  → name another template: model.chat_template: chatml",
    ]
    assert told[-2:] == ["✗ and: 4 more turns", "  → the same"]


def test_targets_and_rank_that_the_model_does_not_have(shop: Workplace) -> None:
    for setting, what, fix in (
        (
            "adapter.targets=q_prj",
            "adapter.targets: q_prj: the model has no such layer",
            f"did you mean q_proj? {KNOWN}",
        ),
        (
            "adapter.rank=1000000000",
            "adapter.rank: 1000000000: the largest weight that is adapted has rank 64",
            "set it to that or less; 8 to 64 is usual",
        ),
    ):
        done = luthier("train", shop.recipe("bad-adapter"), "--set", setting)
        assert (done.status, done.err) == (2, f"✗ {what}\n  → {fix}\n")
