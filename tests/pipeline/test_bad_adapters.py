"""Adapters and output folders that cannot be used, or must not be."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from driver import Workplace, luthier
from safetensors.torch import load_file, save_file
from spoil import AGAIN, Bomb, Spoil, change, cut
from tiny import save_model

from luthier.report.record import RunFolder

# Adapters.


@pytest.fixture(scope="module")
def trained(shop: Workplace) -> RunFolder:
    return shop.train("to-be-spoilt", train={"steps": 1})


def tensors(adapter: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = adapter / "adapter_model.safetensors"
    held = load_file(file)
    edit(held)
    save_file(held, file)


def into_pickled_adapter(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(adapter / "ran")))


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
COPY = "copy the adapter folder again, or train again"
ADAPTERS: dict[str, tuple[Spoil, str, str]] = {
    "of another rank": (
        lambda a: change(a / "adapter_config.json", r=16),
        "A: adapter_config.json says rank 16, and adapter_model.safetensors has rank 4",
        "put the two files of one adapter together",
    ),
    "cut short": (
        lambda a: cut(a / "adapter_model.safetensors", -50),
        "A/adapter_model.safetensors: is cut: it has 33,126 bytes, and its header names 33,176",
        AGAIN,
    ),
    "without weights": (
        lambda a: (a / "adapter_model.safetensors").unlink(),
        "A: has no adapter_model.safetensors",
        COPY,
    ),
    "that is a pickle": (
        into_pickled_adapter,
        "A: has no adapter_model.safetensors; adapter_model.bin is a pickle, which can run code, and is not read",
        COPY,
    ),
    "with a tensor less": (
        lambda a: tensors(a, lambda held: held.pop(FIRST)),
        f"A: its tensors are not those that adapter_config.json asks for: 1 differ, first {FIRST}",
        COPY,
    ),
    "with a tensor more": (
        lambda a: tensors(a, lambda held: held.update({FIRST.replace("0", "7"): held[FIRST].clone()})),
        "A: its tensors are not those that adapter_config.json asks for: 1 differ, first " + FIRST.replace("0", "7"),
        COPY,
    ),
    "without a config": (
        lambda a: (a / "adapter_config.json").unlink(),
        "A/adapter_config.json: is not there",
        AGAIN,
    ),
    "with a config that is a list": (
        lambda a: (a / "adapter_config.json").write_text("[]"),
        "A/adapter_config.json: holds no JSON object",
        AGAIN,
    ),
    "of another kind": (
        lambda a: change(a / "adapter_config.json", peft_type="IA3"),
        "A/adapter_config.json: is not the config of a LoRA adapter that Luthier made (peft_type IA3)",
        COPY,
    ),
    "whose config names a module to import": (
        lambda a: (
            change(a / "adapter_config.json", megatron_config={}, megatron_core="antigravity")
            or change(a / "adapter_config.json", megatron_config={"x": 1})
        ),
        "A/adapter_config.json: is not the config of a LoRA adapter that Luthier made (peft_type LORA)",
        COPY,
    ),
    "without its card": (
        lambda a: (a / "luthier.json").unlink(),
        "A: has no luthier.json: it is not an adapter of Luthier",
        "name a run's folder",
    ),
    "with a damaged card": (
        lambda a: change(a / "luthier.json", base_identity=5),
        "A/luthier.json: is damaged: `base_identity` is not text",
        "copy it from the run again",
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_is_refused(trained: RunFolder, tmp_path: Path, name: str) -> None:
    spoil, what, fix = ADAPTERS[name]
    run = shutil.copytree(trained.path, tmp_path / "run")
    adapter = run / "adapter"
    spoil(adapter)
    done = luthier("chat", run, "-p", "Hi", "--max-new-tokens", 1)
    expected = f"✗ {what}\n  → {fix}\n".replace("A:", f"{adapter}:").replace("A/", f"{adapter}/")
    assert (done.status, done.out, done.err) == (2, "", expected)
    assert not (adapter / "ran").exists()


@pytest.mark.parametrize("command", [("chat", "-p", "Hi"), ("merge", "-o", "OUT"), ("eval",)], ids=lambda c: c[0])
def test_an_adapter_of_another_base(
    trained: RunFolder, shop: Workplace, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Same shapes, other weights: PEFT would load it without a word."""
    other = save_model(tmp_path / "other", seed=1)
    run = shutil.copytree(trained.path, tmp_path / "run")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace(str(shop.model), str(other)), encoding="utf-8")
    name, *options = (part.replace("OUT", str(tmp_path / "merged")) for part in command)
    done = luthier(name, run, *options)
    assert (done.status, done.err) == (
        2,
        f"✗ {run}/adapter: was trained on {shop.model}, and {other} holds another model\n  → load it on {shop.model}\n",
    )
    assert not (tmp_path / "merged").exists()


# Where the run goes.


def test_an_output_that_is_another_run(trained: RunFolder, shop: Workplace) -> None:
    done = luthier("train", shop.recipe("another", train={"epochs": 9}), "--set", f"output={trained.path}")
    assert (done.status, done.err) == (
        2,
        f"✗ {trained.path}: holds a run of another recipe: train.epochs, train.steps differ\n"
        f"  → start over with --fresh, or choose another folder: --set output={trained.path}-2\n",
    )


def test_an_output_that_cannot_be_written(shop: Workplace, tmp_path: Path) -> None:
    """A file in the way of the folder; names that no file system takes."""
    blocked = tmp_path / "file"
    blocked.write_text("kept", encoding="utf-8")
    elsewhere = "choose a folder on a disk that can be written: --set output=FOLDER"
    other = f"give the run a folder of its own: --set output={blocked}/run-2"
    for output, reason, fix in (
        (blocked / "run", "Not a directory", other),
        (tmp_path / ("x" * 300), "File name too long", elsewhere),
    ):
        done = luthier("train", shop.recipe("nowhere"), "--set", f"output={output}")
        assert (done.status, done.err) == (2, f"✗ {output}: the folder cannot be made: {reason}\n  → {fix}\n")
    assert blocked.read_text(encoding="utf-8") == "kept"


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real read-only disk where one may be mounted; else the error that the kernel gives of one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)]
    mounted = shutil.which("mount") is not None and subprocess.run(mount, stderr=subprocess.DEVNULL).returncode == 0
    for name in () if mounted else ("touch", "mkdir"):
        monkeypatch.setattr(Path, name, refusing(disk, getattr(Path, name)))
    yield disk
    if mounted:
        subprocess.run(["umount", str(disk)], check=True)


def refusing(disk: Path, original: Callable[..., Any]) -> Callable[..., Any]:
    def refused(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.parent == disk:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return original(path, *arguments, **options)

    return refused


def test_a_file_system_that_is_read_only(shop: Workplace, read_only: Path) -> None:
    """Permissions do not tell, and an administrator has them all: the folder is tried by writing."""
    elsewhere = "choose a folder on a disk that can be written: --set output=FOLDER"
    for output, cannot in ((read_only, "written"), (read_only / "run", "made")):
        done = luthier("train", shop.recipe("read-only"), "--set", f"output={output}")
        assert (done.status, done.err) == (
            2,
            f"✗ {output}: the folder cannot be {cannot}: Read-only file system\n  → {elsewhere}\n",
        )


def test_a_cache_that_cannot_be_written_or_is_damaged_costs_time_only(
    shop: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked, home = tmp_path / "file", tmp_path / "home"
    blocked.write_text("", encoding="utf-8")
    monkeypatch.setenv("LUTHIER_HOME", str(blocked))
    done = luthier("data", shop.rows, "-m", shop.model)
    assert (done.status, done.err) == (
        0,
        f"note: {blocked}/tokens cannot be written (Not a directory): the next run has to render these rows again\n",
    )
    monkeypatch.setenv("LUTHIER_HOME", str(home))
    whole = luthier("data", shop.rows, "-m", shop.model)
    (kept,) = (home / "tokens").iterdir()
    for damaged in (b"", kept.read_bytes()[:500], pickle.dumps(Bomb(tmp_path / "ran"))):
        kept.write_bytes(damaged)
        again = luthier("data", shop.rows, "-m", shop.model)
        assert (again.status, again.err, again.out) == (0, "", whole.out)
    assert not (tmp_path / "ran").exists()
