"""Exports that must not pass, that cannot be asked for, or that break off: nothing is left under their name."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from driver import Workplace, finished, luthier, luthier_process

from luthier.export import converter, llama, merge, record
from luthier.report import disk
from luthier.report.record import RunFolder

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
        ("template", "prompts with identical tokens", r"0 of 4: must be all"),
        ("stop", "free answers that end", r"[01] of 4: must be at least 3"),
    ],
)
def test_another_template_and_a_lost_stop_token_fail(
    shop: Workplace, exports: dict[str, Any], spoil: str, name: str, found: str
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
    assert done.status == 1
    assert re.fullmatch(re.escape(f"✗ {folder}, {name}: ") + found, done.err.splitlines()[0])
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
