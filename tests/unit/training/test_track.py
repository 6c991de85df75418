"""The real trackers under the real Trainer, two steps of a tiny model, and what they wrote read back."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from luthier.errors import Problem, RecipeError
from luthier.recipe.schema import TrackSettings
from luthier.report.record import RunFolder
from luthier.training import track
from luthier.training.display import Display


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home with no accounts in it."""
    for name in ("HOME", "USERPROFILE", "SWANLAB_SAVE_DIR", "SWANLAB_ROOT", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("SWANLAB_API_KEY", "WANDB_API_KEY", "WANDB_MODE", "SWANLAB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost more than they bring for a model this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "one").create()


def train(callbacks: list[TrainerCallback], folder: Path) -> list[dict[str, float]]:
    """Two steps, an evaluation after each; the Trainer's own history."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=2, **shape))
    rows = [{"input_ids": list(range(8)), "labels": list(range(8))}] * 4
    arguments = TrainingArguments(
        str(folder / "out"), max_steps=2, logging_steps=1, eval_strategy="steps", eval_steps=1, save_strategy="no",
        report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=callbacks)  # type: ignore[arg-type]
    trainer.train()
    return trainer.state.log_history


SAMPLES = [(0, "你是谁？", "I am an assistant."), (1, "你是谁？", "我是甄嬛。\n**朕**"), (2, "你是谁？", "")]


class Asks(TrainerCallback):  # type: ignore[misc]
    """Tells trackers of a sample at each step."""

    def __init__(self, trackers: list[track.Guarded]) -> None:
        self.trackers = trackers

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_evaluate(args, state, control) if state.global_step == 0 else None

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, prompt, answer = SAMPLES[state.global_step]
        for tracker in self.trackers:
            tracker.event({"event": "step", "step": step})
            tracker.event({"event": "sample", "step": step, "prompt": prompt, "answer": answer})


def expected(history: list[dict[str, float]]) -> dict[tuple[str, int], float]:
    """The losses of a history under the names that trackers give them."""
    names = {"loss": "train/loss", "eval_loss": "eval/loss"}
    return {(names[key], int(line["step"])): line[key] for line in history for key in names if key in line}


def losses_of_tensorboard(folder: Path) -> dict[tuple[str, int], float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    return {(tag, point.step): point.value for tag in ("train/loss", "eval/loss") for point in read.Scalars(tag)}


def samples_of_tensorboard(folder: Path) -> list[tuple[int, str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    return [(one.step, one.tensor_proto.string_val[0].decode()) for one in read.Tensors("sample/text_summary")]


def samples_of_swanlab(folder: Path) -> list[tuple[int, str, str]]:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    [file] = folder.glob("run-*/*.swanlab")
    reader = DataStoreReader()
    reader.open(file)
    found = [record.media for record in map(Record.FromString, reader) if record.HasField("media")]
    reader.close()
    items = [(one.step, one.value.items[0]) for one in found if one.key == "sample"]
    texts = {path.name: path.read_text(encoding="utf-8") for path in file.parent.rglob("*.txt")}
    return [(step, item.caption, texts[item.filename]) for step, item in items]


def samples_of_wandb(folder: Path) -> list[list[tuple[int, str, str]]]:
    """Each table that was logged."""
    from swanlab.converter.wb.wbdatastore import WBDataStoreReader
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    tables = []
    with WBDataStoreReader() as reader:
        reader.open(file)
        while (data := reader.scan()) is not None:
            items = Record.FromString(data).history.item
            for item in (item for item in items if list(item.nested_key) == ["sample", "path"]):
                path = file.parent / "files" / json.loads(item.value_json)
                table = json.loads(path.read_text(encoding="utf-8"))
                assert table["columns"] == ["step", "prompt", "answer"]
                tables.append([tuple(each) for each in table["data"]])
    return tables


def losses_of_swanlab(folder: Path) -> dict[tuple[str, int], float]:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    [file] = folder.glob("run-*/*.swanlab")
    reader = DataStoreReader()
    reader.open(file)
    scalars = [record.scalar for record in map(Record.FromString, reader) if record.HasField("scalar")]
    reader.close()
    return {(one.key, one.step): one.value.number for one in scalars if one.key in ("train/loss", "eval/loss")}


def losses_of_wandb(folder: Path) -> dict[tuple[str, int], float]:
    from swanlab.converter.wb.wbdatastore import WBDataStoreReader
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    found = {}
    with WBDataStoreReader() as reader:
        reader.open(file)
        while (data := reader.scan()) is not None:
            items = Record.FromString(data).history.item
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
            found.update({(k, row["train/global_step"]): row[k] for k in ("train/loss", "eval/loss") if k in row})
    return found


def test_all_three_keep_the_losses_on_this_machine(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = TrackSettings(to=["swanlab", "tensorboard", "wandb"], project="workshop")
    made = track.callbacks(settings, run, "one")
    said = capsys.readouterr().out
    history = train([*made, Asks(made)], tmp_path)
    want = expected(history)
    assert len(want) == 4
    assert losses_of_tensorboard(run.track_dir / "tensorboard") == pytest.approx(want)
    assert losses_of_swanlab(run.track_dir / "swanlab") == pytest.approx(want)
    assert losses_of_wandb(run.track_dir / "wandb") == pytest.approx(want)
    texts = [(step, f"**{prompt}**\n\n{answer}") for step, prompt, answer in SAMPLES]
    assert samples_of_tensorboard(run.track_dir / "tensorboard") == texts
    assert samples_of_swanlab(run.track_dir / "swanlab") == SAMPLES
    assert samples_of_wandb(run.track_dir / "wandb") == [SAMPLES[:count] for count in (1, 2, 3)]
    assert f"SwanLab: in files under {run.track_dir / 'swanlab'}. Send them with: " in said
    assert f"--logdir {run.track_dir / 'tensorboard'}" in said
    assert f"W&B: in files under {run.track_dir / 'wandb'}. Send them with: " in said
    printed = capsys.readouterr()
    assert "swanlab" not in printed.out
    assert "wandb" not in printed.out
    assert "tracks no more" not in printed.err


def test_tensorboard_forgets_steps_that_are_done_again(tmp_path: Path) -> None:
    place = track.Place(tmp_path / "tb", "workshop", "one", cloud=False)
    for step, loss in ((0, 1.0), (1, 9.0)):  # a run of steps 1 to 3, then one that goes on from step 1
        opened = track.TRACKERS["tensorboard"].start(place, step)
        for done in range(step + 1, 4):
            opened.callback.tb_writer.add_scalar("train/loss", loss, done)
            opened.callback.tb_writer.add_scalar("eval/loss", loss, done)
        opened.finish()
    found = losses_of_tensorboard(place.folder)
    assert [found["train/loss", step] for step in (1, 2, 3)] == [1.0, 9.0, 9.0]


# Before the run


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    there = importlib.util.find_spec("json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else there)


def test_what_is_not_installed_is_found_before_the_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "swanlab", "wandb")
    settings = TrackSettings(to=["swanlab", "tensorboard", "wandb"])
    assert track.check(settings) == [
        Problem("track.to", "SwanLab is not installed", f'"{sys.executable}" -m pip install swanlab'),
        Problem("track.to", "W&B is not installed", f'"{sys.executable}" -m pip install wandb'),
    ]
    with pytest.raises(RecipeError) as caught:
        track.callbacks(settings, run, "one")
    assert len(caught.value.problems) == 2


def test_the_cloud_needs_an_account() -> None:
    assert track.check(TrackSettings(to=["swanlab", "tensorboard", "wandb"], cloud=True)) == [
        Problem(
            "track.cloud", "no SwanLab account is known on this machine", "swanlab login, or set track.cloud=false"
        ),
        Problem("track.cloud", "no W&B account is known on this machine", "wandb login, or set track.cloud=false"),
    ]


def test_a_known_account_is_enough_for_the_cloud(run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("SWANLAB_API_KEY", "k" * 21)
    settings = TrackSettings(to=["swanlab"], project="workshop", cloud=True)
    assert track.check(settings) == []
    assert len(track.callbacks(settings, run, "one")) == 1
    assert capsys.readouterr().out == "SwanLab: sends this run to project workshop of your account\n"


def test_a_cloud_that_no_tracker_has_is_refused() -> None:
    fix = "add swanlab or wandb to track.to, or set track.cloud=false"
    there_is_none = Problem("track.cloud", "there is no tracker with a cloud among them", fix)
    assert track.check(TrackSettings(to=["tensorboard"], cloud=True)) == [there_is_none]
    assert track.check(TrackSettings(to=["tensorboard"])) == []
    assert track.check(TrackSettings()) == []


@pytest.mark.parametrize(("swanboard", "hint"), [("0.1.10b2", " watch "), ("0.1.6", " sync "), (None, " sync ")])
def test_swanlab_uses_its_dashboard_where_the_right_one_is_installed(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: Any, swanboard: str | None, hint: str
) -> None:
    def version(package: str) -> str:
        if swanboard is None:
            raise metadata.PackageNotFoundError(package)
        return swanboard

    monkeypatch.setattr(metadata, "requires", lambda package: ["rich", 'swanboard==0.1.10b2; extra == "dashboard"'])
    monkeypatch.setattr(metadata, "version", version)
    track.callbacks(TrackSettings(to=["swanlab"]), run, "one")
    assert f"{hint}{run.track_dir / 'swanlab'}" in capsys.readouterr().out


# While it runs


class Fake(TrainerCallback):  # type: ignore[misc]
    """Writes down what it is told, and fails at one event."""

    def __init__(self, fails_at: str) -> None:
        self.fails_at = fails_at
        self.heard: list[str] = []

    def hear(self, event: str) -> None:
        self.heard.append(event)
        sys.stdout.write("chatter\n")
        if event == self.fails_at:
            raise OSError("No space left\non device")

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.hear("begin")

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self.hear("log")

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.hear("evaluate")

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.hear("end")


def guarded(fails_at: str) -> tuple[track.Guarded, Fake]:
    fake = Fake(fails_at)

    def start(place: track.Place, step: int) -> track.Open:
        fake.hear("start")
        return track.Open(fake, lambda: fake.hear("finish"), lambda *sample: fake.hear(f"sample {sample}"))

    tracker = track.Tracker("Fake", "json", start, lambda place: "")
    return track.Guarded(tracker, track.Place(Path("there"), "workshop", "one", cloud=False)), fake


@pytest.mark.parametrize(
    ("fails_at", "heard"),
    [
        ("", ["start", "begin", "log", "log", "evaluate", "log", "log", "evaluate", "log", "end", "finish"]),
        ("start", ["start"]),
        ("log", ["start", "begin", "log", "finish"]),
        ("finish", ["start", "begin", "log", "log", "evaluate", "log", "log", "evaluate", "log", "end", "finish"]),
    ],
)
def test_a_tracker_that_fails_ends_only_itself(tmp_path: Path, capsys: Any, fails_at: str, heard: list[str]) -> None:
    callback, fake = guarded(fails_at)
    history = train([callback], tmp_path)
    assert [line["step"] for line in history] == [1, 1, 2, 2, 2]
    assert fake.heard == heard
    printed = capsys.readouterr()
    warning = "note: Fake failed and tracks no more: No space left on device. The training goes on.\n"
    assert printed.err.replace("chatter\n", "") == (warning if fails_at else "")
    assert "chatter" not in printed.out


def test_close_ends_a_session_once(tmp_path: Path) -> None:
    callback, fake = guarded("")
    state = SimpleNamespace(is_world_process_zero=True, global_step=0)
    callback.on_train_begin(None, state, None)
    callback.close()
    callback.close()
    callback.on_log(None, state, None)
    assert fake.heard == ["start", "begin", "finish"]


def test_samples_are_kept_while_a_session_is_open(capsys: Any) -> None:
    callback, fake = guarded("sample (2, 'Who?', 'Me')")
    state = SimpleNamespace(is_world_process_zero=True, global_step=0)
    sample = {"event": "sample", "step": 1, "prompt": "Who?", "answer": "I"}
    callback.event(sample)  # before the training begins
    callback.on_train_begin(None, state, None)
    callback.event(sample)
    callback.event({"event": "step", "step": 1})
    callback.event({**sample, "step": 2, "answer": "Me"})
    callback.event({**sample, "step": 3})
    assert fake.heard == ["start", "begin", "sample (1, 'Who?', 'I')", "sample (2, 'Who?', 'Me')"]
    assert "note: Fake failed and tracks no more: No space left on device." in capsys.readouterr().err


def test_only_the_first_process_tracks() -> None:
    callback, fake = guarded("")
    callback.on_train_begin(None, SimpleNamespace(is_world_process_zero=False, global_step=0), None)
    callback.close()
    assert fake.heard == []


def test_what_a_tracker_prints_stands_above_the_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what it prints with a rich console of its own, which would write past the view's."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen, own = Terminal(), Console()
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, screen)
    callback, fake = guarded("")
    monkeypatch.setattr(fake, "hear", lambda event: own.print(f"chatter at {event}"))
    with Display("huanhuan", "Qwen/Qwen3-0.6B"):
        callback.on_train_begin(None, SimpleNamespace(is_world_process_zero=True, global_step=0), None)
    before_the_view_or_where_it_was = re.findall(r"\x1b\[(?:\?25l|2K)chatter at (\w+)\n", screen.getvalue())
    assert (before_the_view_or_where_it_was, screen.getvalue().count("chatter")) == (["start", "begin"], 2)
