"""A run's result as people use it: measured before it is called done, and never called done when it is not."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from driver import SYSTEM, Workplace, files_in, finished, luthier, luthier_process
from peft import PeftModel
from tiny import QWEN3
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.data.conversation import Message
from luthier.export import converter, llama, merge, record
from luthier.inference.opened import open_ref, open_run
from luthier.report import disk
from luthier.report.record import RunFolder

ALWAYS = {"LICENSE", "README.md", "export.json", "luthier.json"}
ALWAYS |= {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def base(shop: Workplace) -> Path:
    """The usual model, with a licence."""
    folder = shop.folder / "export" / "licensed"
    shutil.copytree(shop.model, folder)
    (folder / "LICENSE").write_text("Do as you like.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(shop: Workplace, base: Path) -> RunFolder:
    """Trained until it knows its rows by heart."""
    train = {"steps": 60, "batch_size": 20, "learning_rate": 0.02, "eval_steps": 60}
    return shop.train("export", model={"ref": str(base)}, adapter={"rank": 16, "alpha": 32}, train=train)


@pytest.fixture(scope="module")
def exports(shop: Workplace, run: RunFolder) -> dict[str, Any]:
    """Each target that needs no converter, with what the command said."""
    said = {}
    for to in ("merged", "adapter"):
        done = luthier("export", run.path, "--to", to, "-o", shop.folder / "exports" / to, "--json")
        assert done.status == 0, done.err
        said[to] = done.json
    return said


def test_what_is_measured(shop: Workplace, run: RunFolder, exports: dict[str, Any]) -> None:
    for to, weights in (("merged", "float32"), ("adapter", "adapter")):
        said = exports[to]
        figures = said["figures"]
        assert (said["ok"], said["state"], said["to"], said["weights"]) == (True, "verified", to, weights)
        assert (figures["prompts"], figures["same_prompts"], figures["source"]) == (4, 4, "held-out prompts")
        assert (figures["top1"], figures["answers"], figures["same_answers"]) == (1.0, 4, 4)
        assert 0 <= figures["kl"] < 1e-6
        assert figures["ended_exported"] == figures["ended_trained"]
        assert figures["end_exported"] == pytest.approx(figures["end_trained"], abs=1e-4)
        kept = json.loads((shop.folder / "exports" / to / "export.json").read_text(encoding="utf-8"))
        assert kept == {key: said[key] for key in kept}


def test_the_table(shop: Workplace, run: RunFolder) -> None:
    done = luthier("export", run.path, "--to", "adapter", "-o", shop.folder / "table")
    assert (done.status, done.err) == (0, "")
    lines = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in done.out.splitlines() if "│" in line]
    assert [line[0] for line in lines] == [
        "prompts with identical tokens",
        "KL divergence, nats (mean)",
        "same likeliest token",
        "probability of ending, where answers end",
        "free answers that end",
    ]
    assert lines[0] == ["prompts with identical tokens", "", "4 of 4", "all", "✓"]
    assert {line[4] for line in lines} == {"✓"}
    assert f"push     luthier push {shop.folder / 'table'} --to ms:OWNER/NAME" in done.out


def test_a_merged_folder_is_whole(shop: Workplace, run: RunFolder, exports: dict[str, Any]) -> None:
    folder = shop.folder / "exports" / "merged"
    assert files_in(folder) == ALWAYS | {"config.json", "generation_config.json", "model.safetensors"}
    assert json.loads((folder / "generation_config.json").read_bytes())["eos_token_id"] == [0, 2]
    assert (folder / "LICENSE").read_text(encoding="utf-8") == "Do as you like.\n"
    assert set(exports["merged"]["files"]) == files_in(folder) - {"export.json"}
    assert luthier("chat", folder, "-p", "Who are you?", "--json").json["system"] == SYSTEM


def test_an_adapter_folder_loads_with_plain_peft(shop: Workplace, base: Path, exports: dict[str, Any]) -> None:
    folder = shop.folder / "exports" / "adapter"
    own = {"adapter_config.json", "adapter_model.safetensors", "generation_config.json"}
    assert files_in(folder) == ALWAYS | own
    assert json.loads((folder / "generation_config.json").read_bytes())["eos_token_id"] == [0, 2]
    config = json.loads((folder / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == base.name  # and not where it lies on this machine
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("Who are you?")["input_ids"]])
    whole = AutoModelForCausalLM.from_pretrained(shop.folder / "exports" / "merged").eval()
    with torch.no_grad():
        assert float((tuned(ids).logits - whole(ids).logits).abs().max()) < 1e-4


def test_no_file_but_the_record_names_a_folder_of_this_machine(shop: Workplace, exports: dict[str, Any]) -> None:
    named = [
        file.name
        for to in exports
        for file in (shop.folder / "exports" / to).iterdir()
        if str(shop.folder).encode() in file.read_bytes()
    ]
    assert named == ["export.json", "export.json"]


def test_the_card(shop: Workplace, run: RunFolder, base: Path, exports: dict[str, Any]) -> None:
    text = (shop.folder / "exports" / "merged" / "README.md").read_text(encoding="utf-8")
    result, data = (run.record() or {})["result"], (run.record() or {})["data"]
    assert text.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    assert str(shop.folder) not in text
    for part in (
        f"# {run.name}\n",
        f"`{base.name}`, fine-tuned with LoRA and merged into one ordinary model.",
        "| prompts with identical tokens |  | 4 of 4 | all |",
        f"| data | `rows.jsonl`, 24 rows, SHA-256 `{data['files'][0]['sha256']}` |",
        "| `adapter.rank` | 16 |",
        f"| held-out loss before, after | {result['heldout_loss_before']:.2f}, {result['heldout_loss_after']:.2f} nats",
        f"System prompt of the training:\n\n```\n{SYSTEM}\n```",
        f"after:\n\n```\n{(run.record() or {})['answers'][0]['tuned']}\n```",
        "That of the base model: [LICENSE](LICENSE).",
    ):
        assert part in text


def test_an_export_can_be_measured_again(shop: Workplace, run: RunFolder, exports: dict[str, Any]) -> None:
    folder = shop.folder / "exports" / "merged"
    before = record.read(folder)
    done = luthier("export", "--verify", folder, "--json")
    assert (done.status, done.json["state"]) == (0, "verified")
    assert record.read(folder).model_dump() == before.model_dump()


def test_a_run_that_moved(shop: Workplace, run: RunFolder, exports: dict[str, Any]) -> None:
    folder = shop.folder / "exports" / "adapter"
    kept = (folder / "export.json").read_text(encoding="utf-8")
    gone = shop.folder / "gone"
    (folder / "export.json").write_text(kept.replace(str(run.path.resolve()), str(gone)), encoding="utf-8")
    done = luthier("export", "--verify", folder)
    assert (done.status, done.err) == (
        2,
        f"✗ {gone}: the run of this export is not there\n"
        f"  → name the folder where it is now: luthier export RUN --verify {folder}\n",
    )
    assert luthier("export", run.path, "--verify", folder).status == 0
    (folder / "export.json").write_text(kept, encoding="utf-8")


def test_another_run_is_not_taken_for_it(shop: Workplace, run: RunFolder, exports: dict[str, Any]) -> None:
    other = shop.train("export-another", train={"steps": 2})
    done = luthier("export", other.path, "--verify", shop.folder / "exports" / "adapter")
    assert (done.status, done.err) == (
        2,
        f"✗ {other.path}: holds another adapter than the one that was exported\n"
        "  → name the right run, or export this one again\n",
    )


def test_prompts_of_the_record_where_the_rows_are_gone(shop: Workplace, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    shutil.copy(shop.rows, rows)
    run = shop.train("export-rowless", data={"train": str(rows)}, train={"steps": 2})
    rows.unlink()
    done = luthier("export", run.path, "--to", "adapter", "-o", tmp_path / "out", "--json")
    assert done.status == 0, done.err
    assert (done.json["figures"]["source"], done.json["figures"]["prompts"]) == ("prompts of run.json", 4)
    assert "the run's rows cannot be read" in done.err


def test_a_thinking_model_is_asked_to_think(shop: Workplace, tmp_path: Path) -> None:
    """In Luthier by what the folder remembers, elsewhere by its template's default."""
    thinker = tmp_path / "thinker"
    shutil.copytree(shop.model, thinker)
    (thinker / "chat_template.jinja").write_text(QWEN3, encoding="utf-8")
    settings = {"ref": str(thinker), "thinking": True}
    run = shop.train("export-thinking", model=settings, train={"steps": 2})
    merged = tmp_path / "merged"
    assert luthier("merge", run.path, "-o", merged).status == 0
    opened = open_ref(str(merged))
    asked = [Message("user", "Hi")]
    expected = open_run(run).renderer.prompt_ids(asked)
    assert opened.renderer.prompt_ids(asked) == expected
    plain = AutoTokenizer.from_pretrained(merged).apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True
    )
    assert plain["input_ids"] == expected


# What must not pass.


def test_a_merge_that_lost_the_adapter_fails(shop: Workplace, run: RunFolder) -> None:
    def base_only(folder: Path, run: RunFolder, **_: Any) -> Any:
        opened = merge.open_run(run, dtype="float32")
        merge._save(opened.model.unload(), folder, opened)
        return mock.Mock(dtype=mock.Mock(value="float32"))

    with mock.patch("luthier.export.export.merge_into", base_only):
        done = luthier("export", run.path, "--to", "merged", "-o", folder := shop.folder / "lost")
    assert done.status == 1
    first, fix, *_ = done.err.splitlines()
    found = first.removeprefix(f"✗ {folder}, KL divergence, nats (mean): ").removesuffix(": must be at most 0.0001")
    assert float(found) > 1
    assert fix == "  → take a finer --quant, or another target: --to merged or --to adapter"
    assert not folder.exists()
    assert not list(shop.folder.glob(".lost*"))


@pytest.mark.parametrize(
    ("spoil", "name", "found"),
    [
        ("template", "prompts with identical tokens", "0 of 4: must be all"),
        ("stop", "free answers that end", "0 of 4: must be at least 3"),
    ],
)
def test_another_template_and_a_lost_stop_token_fail(
    shop: Workplace, run: RunFolder, spoil: str, name: str, found: str
) -> None:
    """Found where it was exported well, and changed by hand together with its hashes."""
    folder = shop.folder / f"spoiled-{spoil}"
    shutil.copytree(shop.folder / "exports" / "merged", folder)
    if spoil == "template":
        file = folder / "chat_template.jinja"
        file.write_text(file.read_text(encoding="utf-8").replace("assistant", "bot"), encoding="utf-8")
    else:
        file = folder / "generation_config.json"
        file.write_text('{"eos_token_id": 399}', encoding="utf-8")
    made = json.loads((folder / "export.json").read_bytes())
    made["files"][file.name] = record.sha256(file)
    (folder / "export.json").write_text(json.dumps(made), encoding="utf-8")
    done = luthier("export", "--verify", folder)
    assert (done.status, done.err.splitlines()[0]) == (1, f"✗ {folder}, {name}: {found}")
    assert record.read(folder).state == "failed"
    pushed = luthier("push", folder, "--to", "hf:me/model", "--yes", "--unverified")
    assert (pushed.status, pushed.err) == (
        1,
        f"✗ {folder}: does not answer as the trained model does ({name})\n"
        "  → export the run again: in another form, or after training anew\n",
    )


def test_what_the_runtime_cannot_load_fails(shop: Workplace, run: RunFolder, tmp_path: Path) -> None:
    with mock.patch("luthier.export.runtimes.Transformers.prompt_ids", side_effect=ValueError("no template\nat all")):
        done = luthier("export", run.path, "--to", "adapter", "-o", tmp_path / "out")
    assert (done.status, done.err) == (
        1,
        f"✗ {tmp_path / 'out'}: transformers cannot run it: ValueError: no template\n"
        "  → take another target: --to merged or --to adapter\n",
    )
    assert not (tmp_path / "out").exists()


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--to", "merged", "--quant", "f16"), "--quant f16: a merged model is not quantised"),
        (("--to", "adapter", "--quant", "q8_0"), "--quant q8_0: an adapter is not quantised"),
        (("--to", "onnx"), "'onnx' is not merged, gguf, ollama, adapter"),
        (("--to", "gguf", "--quant", "q2_k"), "'q2_k' is not q8_0, q4_k_m, f16"),
        ((), "Invalid value for --to: is needed: luthier export RUN --to gguf -o DIR"),
    ],
)
def test_what_cannot_be_asked(shop: Workplace, run: RunFolder, arguments: tuple[str, ...], error: str) -> None:
    done = luthier("export", run.path, *arguments, "-o", shop.folder / "never")
    assert (done.status, done.out) == (2, "")
    assert error in done.err
    assert not (shop.folder / "never").exists()


def test_a_run_or_an_output_that_will_not_do(shop: Workplace, run: RunFolder, exports: dict[str, Any]) -> None:
    taken = shop.folder / "exports"
    assert luthier("export", run.path, "--to", "adapter", "-o", taken).err == (
        f"✗ {taken}: is not empty\n  → name another folder: -o DIR\n"
    )
    young = shop.run("export-unborn").create()
    young.write_recipe(run.read_recipe())
    assert luthier("export", young.path, "--to", "gguf", "-o", shop.folder / "never").err == (
        f"✗ {young.path}: has no result yet (not started)\n"
        "  → finish it first: the same luthier train command goes on from its last checkpoint\n"
    )
    below = shop.rows / "out"
    said = luthier("export", run.path, "--to", "adapter", "-o", below).err
    assert said.startswith(f"✗ {below}: cannot be made: ")
    assert said.endswith("\n  → name a folder that can be written: -o DIR\n")
    assert luthier("export", "--verify", shop.folder).err == (
        f"✗ {shop.folder}: is no export (no export.json)\n  → make one: luthier export RUN --to gguf -o DIR\n"
    )


def test_without_llama_cpp_there_is_no_q4_k_m(shop: Workplace, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "is_installed", lambda: False)
    done = luthier("export", run.path, "--to", "gguf", "--quant", "q4_k_m", "-o", shop.folder / "never")
    assert (done.status, done.err) == (
        2,
        "✗ --quant q4_k_m: is made by llama.cpp, and llama-cpp-python is not installed\n"
        f'  → "{sys.executable}" -m pip install llama-cpp-python (it is compiled then, with a C++ compiler), '
        "or --quant q8_0 or f16, which need neither\n",
    )


def test_a_forged_record(shop: Workplace, exports: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "forged"
    shutil.copytree(shop.folder / "exports" / "adapter", folder)
    file = folder / "export.json"
    made = json.loads(file.read_bytes())
    for change, said in (
        ({"state": "verified"}, "is not what Luthier wrote: state: Extra inputs are not permitted"),
        ({"weights": "int1"}, "is not what Luthier wrote: weights: 'int1'"),
        ({"figures": {**made["figures"], "prompts": 0}}, "is not what Luthier wrote: figures.prompts: "),
    ):
        file.write_text(json.dumps({**made, **change}), encoding="utf-8")
        done = luthier("push", folder, "--to", "hf:me/model")
        assert (done.status, done.out) == (2, "")
        assert f"✗ {file}: {said}" in done.err
    file.write_text("{", encoding="utf-8")
    assert luthier("export", "--verify", folder).err.startswith(f"✗ {file}: is not what Luthier wrote: the file: ")
    file.write_text(json.dumps(made), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    (folder / "new.bin").touch()
    done = luthier("push", folder, "--to", "hf:me/model")
    assert (done.status, done.err) == (
        1,
        f"✗ {folder}: has changed since it was exported: adapter_model.safetensors, new.bin\n"
        "  → export the run again\n",
    )


def test_a_full_disk(shop: Workplace, run: RunFolder) -> None:
    folder = shop.folder / "full"
    with mock.patch.object(disk, "free_bytes", lambda path: 1000):
        done = luthier("export", run.path, "--to", "merged", "-o", folder)
    assert (done.status, done.err) == (
        2,
        f"✗ {folder}: the disk is full: the export needs 0 MB, and 0 MB are free\n"
        "  → make room there, or name a folder elsewhere: -o DIR\n",
    )
    with mock.patch("luthier.export.card.copy_licences", side_effect=OSError(28, "No space left on device")):
        done = luthier("export", run.path, "--to", "merged", "-o", folder)
    assert done.status == 2
    assert done.err.startswith(f"✗ {folder}: the disk is full: ")
    assert not folder.exists()
    assert not list(shop.folder.glob(".full*"))


def test_killed_half_way_leaves_nothing_under_the_name(shop: Workplace, run: RunFolder) -> None:
    folder = shop.folder / "killed"
    process = luthier_process("export", run.path, "--to", "merged", "-o", folder)
    while not (disk.partial(folder) / "model.safetensors").exists() and process.poll() is None:
        pass
    process.kill()
    finished(process)
    assert not folder.exists()
    assert disk.partial(folder).exists()
    assert luthier("export", run.path, "--to", "merged", "-o", folder).status == 0
    assert not disk.partial(folder).exists()


def test_what_the_converter_refuses(shop: Workplace, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own last words, from a stand-in for its process: the real one is in tests/real."""
    folder = shop.folder / "unknown"
    tool = shop.folder / "tool"
    tool.mkdir()
    script = tool / "convert_hf_to_gguf.py"
    monkeypatch.setattr(converter, "install", lambda: tool)
    other = "  → export it as --to merged, which transformers and vLLM run\n"
    for code, status, said in (
        (
            "raise NotImplementedError('BPE pre-tokenizer was not recognized - update get_vocab_base_pre()')",
            2,
            "llama.cpp does not know this model's tokenizer (its pre-tokenizer was not recognized)",
        ),
        (
            "import sys; sys.exit('ERROR: Model TinyForCausalLM is not supported')",
            2,
            "llama.cpp does not run this model: ERROR: Model TinyForCausalLM is not supported",
        ),
        ("1 / 0", 1, "broke off: ZeroDivisionError: division by zero"),
    ):
        script.write_text(code, encoding="utf-8")
        done = luthier("export", run.path, "--to", "gguf", "-o", folder)
        assert (done.status, done.err) == (status, f"✗ the GGUF converter: {said}\n{other}")
    script.write_text("raise OSError(28, 'No space left on device')", encoding="utf-8")
    done = luthier("export", run.path, "--to", "gguf", "-o", folder)
    assert done.status == 2
    assert done.err.startswith(f"✗ {folder}: the disk is full: the GGUF file needs ")
    assert not folder.exists()
