"""A checkpoint is whole or it is not resumed from; none is deleted before a newer one is whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import add_adapter, make_model

from luthier.data.conversation import Source
from luthier.data.render import Example
from luthier.engine.engines import FlatEngine, install
from luthier.training import checkpoint


def make(folder: Path, step: int) -> Path:
    made = folder / f"checkpoint-{step}"
    (made / "inner").mkdir(parents=True)
    (made / "weights.bin").write_bytes(bytes([step % 256]) * 100)
    (made / "inner" / "state.json").write_text("{}", encoding="utf-8")
    checkpoint.seal(made)
    return made


def test_the_manifest_names_every_file_with_size_and_hash(tmp_path: Path) -> None:
    made = make(tmp_path, 7)
    assert sorted(path.name for path in made.iterdir()) == ["inner", "manifest.json", "weights.bin"]
    assert json.loads((made / "manifest.json").read_text(encoding="utf-8")) == {
        "inner/state.json": {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()},
        "weights.bin": {"bytes": 100, "sha256": hashlib.sha256(b"\x07" * 100).hexdigest()},
    }
    assert checkpoint.is_whole(made)
    checkpoint.seal(made)  # again: the manifest does not name itself
    assert checkpoint.is_whole(made)


def test_what_makes_a_checkpoint_incomplete(tmp_path: Path) -> None:
    made = make(tmp_path, 7)

    def whole_after(change: Any, back: Any) -> bool:
        change()
        whole = checkpoint.is_whole(made)
        back()
        assert checkpoint.is_whole(made)
        return whole

    weights, manifest = made / "weights.bin", made / "manifest.json"
    good, listed = weights.read_bytes(), manifest.read_bytes()
    assert not whole_after(lambda: weights.write_bytes(good[:-1]), lambda: weights.write_bytes(good))
    assert not whole_after(lambda: weights.write_bytes(good[:-1] + b"x"), lambda: weights.write_bytes(good))
    assert not whole_after(weights.unlink, lambda: weights.write_bytes(good))
    assert not whole_after(manifest.unlink, lambda: manifest.write_bytes(listed))
    assert not whole_after(lambda: manifest.write_bytes(listed[:-5]), lambda: manifest.write_bytes(listed))
    assert not checkpoint.is_whole(tmp_path / "checkpoint-8")


def test_the_newest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none yet") is None
    for step in (200, 90, 1000):
        make(tmp_path, step)
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoint-1000"
    assert checkpoint.step_of(tmp_path / "checkpoint-1000") == 1000
    assert checkpoint.folder_of(tmp_path, 90) == tmp_path / "checkpoint-90"


def test_a_torn_one_is_named_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (10, 20, 30):
        make(tmp_path, step)
    (tmp_path / "checkpoint-30" / "manifest.json").unlink()
    (tmp_path / "checkpoint-20" / "weights.bin").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoint-10"
    assert capsys.readouterr().err.splitlines() == [
        "note: checkpoint-30 is incomplete, and removed",
        "note: checkpoint-20 is incomplete, and removed",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_what_a_user_put_beside_them_is_no_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, 10)
    make(tmp_path, 20).rename(tmp_path / "checkpoint-best")
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoint-10"


# ---------------------------------------------------------------- those that the trainer writes


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    """Four steps, a checkpoint after each, one kept."""
    from transformers import TrainingArguments

    from luthier.recipe.schema import TrainSettings
    from luthier.training.plan import steps_of
    from luthier.training.trainer import LuthierTrainer, StepDataset

    model, engine = add_adapter(make_model("llama")), FlatEngine()
    install(model, engine)
    rows = [Example([5, 6, number], [-100, 6, number], Source("rows.json", number)) for number in range(10, 18)]
    arguments = TrainingArguments(
        str(tmp_path / "checkpoints"), max_steps=4, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    steps = StepDataset(rows, steps_of(TrainSettings(batch_size=2), rows))
    return LuthierTrainer(model, arguments, engine, steps, [], budget=100, checkpoints_kept=1)


def test_the_files_of_a_checkpoint(trainer: Any, tmp_path: Path) -> None:
    trainer.train()
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert kept.name == "checkpoint-4"
    assert sorted(path.name for path in kept.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    ]
    assert checkpoint.newest(tmp_path / "checkpoints") == kept


def test_killed_while_a_checkpoint_is_written_the_one_before_is_whole(
    trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = checkpoint.seal

    def killed_at_the_third(folder: Path) -> None:
        if folder.name == "checkpoint-3":
            raise KeyboardInterrupt
        seal(folder)

    monkeypatch.setattr(checkpoint, "seal", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert checkpoint.newest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "checkpoint-2"
