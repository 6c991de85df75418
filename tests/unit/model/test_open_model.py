"""A model folder to tokenizer and model, and every way in which a folder is no good."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CHATML, make_tokenizer

from luthier.choice import Choice
from luthier.errors import ModelError, Problem
from luthier.model import load
from luthier.recipe.schema import ModelSettings

SETTINGS = ModelSettings(ref="tiny")


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def change_config(folder: Path, **changed: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changed}), encoding="utf-8")


def problem_of(folder: Path) -> Problem:
    with pytest.raises(ModelError) as raised:
        load.load_model(folder, dtype="float32", device="cpu")
    (problem,) = raised.value.problems
    assert problem.where.startswith(str(folder))
    return problem


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_loaded_frozen_in_the_dtype_asked_for(tiny_model: Path, dtype: str) -> None:
    model = load.load_model(tiny_model, dtype=dtype, device="cpu")
    assert {str(parameter.dtype) for parameter in model.parameters()} == {f"torch.{dtype}"}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.num_parameters() == 2 * 400 * 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 2 * 64) + 64


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    assert problem_of(tmp_path / "nowhere") == Problem(
        str(tmp_path / "nowhere"), "is no folder", "name the folder of a transformers model, or: luthier fetch REF"
    )
    assert problem_of(tmp_path).what == "has no config.json"


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert problem_of(folder).what == "has no weights"
    torch.save({}, folder / "pytorch_model.bin")
    assert problem_of(folder) == Problem(
        str(folder),
        "holds only pickled weights (pytorch_model.bin), which can run code",
        "use a model published as safetensors",
    )


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (-1000, "is cut: it has 452,984 bytes, and its header names 453,984"),
        (100, "is damaged: its header does not fit into its 100 bytes"),
        (0, "is damaged: its header does not fit into its 0 bytes"),
    ],
)
def test_a_truncated_weight_file(folder: Path, keep: int, reason: str) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert problem_of(folder) == Problem(str(file), reason, "fetch or copy it again")


def test_a_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {
        "lm_head.weight": "model-00001-of-00002.safetensors",
        "model.norm.weight": "model-00002-of-00002.safetensors",
    }
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8")
    second = folder / "model-00002-of-00002.safetensors"
    assert problem_of(folder) == Problem(str(second), "is not there", "fetch or copy it again")
    shutil.copy(folder / "model-00001-of-00002.safetensors", second)
    index.write_text(json.dumps({"weight_map": names}), encoding="utf-8")
    assert problem_of(folder).what == "the model cannot be loaded: 'metadata'"


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (
            {"num_hidden_layers": 3},
            "the weight files do not fit config.json: 9 of its tensors are not there, "
            "first model.layers.2.input_layernorm.weight",
        ),
        (
            {"intermediate_size": 128},
            "the weight files do not fit config.json: 6 of its tensors are not there, "
            "first model.layers.0.mlp.down_proj.weight",
        ),
    ],
    ids=["a layer more", "a wider layer"],
)
def test_weights_of_another_shape_are_not_filled_with_random_numbers(
    folder: Path, changed: dict[str, int], what: str
) -> None:
    change_config(folder, **changed)
    assert problem_of(folder) == Problem(str(folder), what, "fetch the model again")


def test_code_that_comes_with_a_model(folder: Path) -> None:
    change_config(
        folder, model_type="unheard-of", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.M"}
    )
    problem = problem_of(folder)
    assert problem.what.startswith(f"the model cannot be loaded: The repository {folder} contains custom code")
    assert problem.fix == "read that code, and if you trust it: model.trust_remote_code: true"


def test_an_architecture_that_transformers_does_not_know(folder: Path) -> None:
    change_config(folder, model_type="unheard-of")
    problem = problem_of(folder)
    assert problem.what.startswith(
        "the model cannot be loaded: The checkpoint you are trying to load has model type `unheard-of`"
    )
    assert problem.fix == "check the folder, or fetch the model again"


def test_how_much_a_model_can_take(folder: Path) -> None:
    assert load.context_length(folder) == 256
    change_config(folder, max_position_embeddings=None, text_config={"max_position_embeddings": 128})
    assert load.context_length(folder) == 128
    change_config(folder, text_config={})
    assert load.context_length(folder) is None


# ---------------------------------------------------------------- tokenizer and template


def test_the_models_own_template(tiny_model: Path) -> None:
    tokenizer = load.load_tokenizer(tiny_model, SETTINGS)
    assert tokenizer.chat_template == make_tokenizer().chat_template
    assert tokenizer("Who are you?")["input_ids"] == make_tokenizer()("Who are you?")["input_ids"]


def test_a_template_of_the_users(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ eos_token }}你", encoding="utf-8")
    asked = ModelSettings(ref="tiny", chat_template=str(tmp_path / "own.jinja"))
    assert load.load_tokenizer(tiny_model, asked).chat_template == "{{ eos_token }}你"


def test_a_template_that_is_neither_shipped_nor_a_file(tiny_model: Path) -> None:
    with pytest.raises(ModelError) as raised:
        load.load_tokenizer(tiny_model, ModelSettings(ref="tiny", chat_template="chatm"))
    assert raised.value.problems == (
        Problem(
            "model.chat_template: chatm",
            "is no file",
            "we ship chatml and instruction-response; or name a Jinja file",
        ),
    )


def test_a_model_without_a_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError) as raised:
        load.load_tokenizer(folder, SETTINGS)
    assert raised.value.problems == (
        Problem(
            str(folder),
            "the tokenizer has no chat template, so it does not say how a conversation is written",
            "name one we ship (model.chat_template: chatml or instruction-response), or a Jinja file",
        ),
    )


def test_of_several_templates_the_default_is_taken(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"tool_use": "tools", "default": CHATML}
    tokenizer.save_pretrained(folder)
    assert load.load_tokenizer(folder, SETTINGS).chat_template == CHATML


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[]"])
def test_a_damaged_tokenizer(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError) as raised:
        load.load_tokenizer(folder, SETTINGS)
    (problem,) = raised.value.problems
    assert problem.what.startswith("the tokenizer cannot be loaded: ")
    assert problem.fix == "check the folder, or fetch the model again"


def test_thinking(tokenizer: Any) -> None:
    thinking = make_tokenizer("{% if enable_thinking %}{% endif %}")
    assert load.pick_thinking(tokenizer, None) == Choice(None, "the chat template has no thinking mode")
    assert load.pick_thinking(thinking, True) == Choice(True, "the recipe asks for it")
    assert load.pick_thinking(thinking, None) == Choice(
        False, "rows hold answers, not thinking; set model.thinking: true for rows with reasoning"
    )
    with pytest.raises(ModelError) as raised:
        load.pick_thinking(tokenizer, False)
    assert raised.value.problems == (
        Problem("model.thinking: false", "the chat template knows no enable_thinking", "leave model.thinking out"),
    )


def test_stop_tokens_come_from_template_tokenizer_and_generation_config(folder: Path, tokenizer: Any) -> None:
    assert load.make_renderer(folder, tokenizer, None).stop_ids == [0, 2]
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}', encoding="utf-8")
    assert load.make_renderer(folder, tokenizer, None).stop_ids == [2, 7]
    (folder / "generation_config.json").unlink()
    assert load.make_renderer(folder, tokenizer, None).stop_ids == [2]
