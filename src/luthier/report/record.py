"""The run folder: the only code that knows the names of its files. docs/architecture.md shows them with their content.

Everything here is safe to read while the run goes on, and after it was killed at any instant.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from luthier import console
from luthier.choice import Choice
from luthier.errors import Problem, RunError
from luthier.report import disk, shape
from luthier.report.refuse import refuse_secrets
from luthier.secrets import masked

if TYPE_CHECKING:
    from luthier.recipe.schema import Recipe  # pydantic takes a while to build it: not for `luthier --help`

Event = dict[str, Any]
_ELSEWHERE = "choose a folder on a disk that can be written: --set output=FOLDER"


class RunFolder:
    """A run on disk. The object alone touches nothing: `create()` makes the folder, `open()` wants an existing run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.resolved_file = self.path / "resolved.json"
        self.events_file = self.path / "events.jsonl"
        self.ledger_file = self.path / "ledger.jsonl"
        self.checkpoints_dir = self.path / "checkpoints"
        self.adapter_dir = self.path / "adapter"
        self.track_dir = self.path / "track"
        self.report_file = self.path / "report.html"
        self.record_file = self.path / "run.json"
        self.evaluation_file = self.path / "evaluation.json"
        self._lock_file = self.path / "run.lock"
        self._owner_file = self.path / "running.json"

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run. Raises RunError that names the runs beside it."""
        run = cls(path)
        if not run.recipe_file.is_file():
            beside = [other.name for other in list_runs(run.path.parent)]
            known = f"choose one of {', '.join(beside)} in {run.path.parent}" if beside else "train one: luthier train"
            raise RunError(Problem(str(path), "there is no run here (no recipe.yaml)", known))
        return run

    def create(self) -> RunFolder:
        """Make the folder, or take up a run that is already there.

        Raises RunError where it would mix with other files, is a file, or cannot be written.
        """
        other = f"give the run a folder of its own: --set output={self.path}-2"
        try:
            if self.path.is_dir() and any(self.path.iterdir()) and not self._is_run():
                raise RunError(Problem(str(self.path), "the folder holds files that are not a run", other))
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"the folder cannot be made: {error.strerror or error}"
            taken = isinstance(error, FileExistsError | NotADirectoryError)
            raise RunError(Problem(str(self.path), what, other if taken else _ELSEWHERE)) from None
        self._check_writable()
        return self

    def _check_writable(self) -> None:
        """By writing: permissions say nothing of a read-only file system, nor to an administrator."""
        probe = self.path / f".write-probe.{os.getpid()}"
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            what = f"the folder cannot be written: {error.strerror or error}"
            raise RunError(Problem(str(self.path), what, _ELSEWHERE)) from None

    def clear(self) -> None:
        """Remove what a run wrote (`--fresh`), and nothing else that lies in the folder.

        The result first and the recipe last: killed in between, it is never a folder of which nobody knows whose it is.
        """
        self.record_file.unlink(missing_ok=True)
        for folder in (self.checkpoints_dir, self.adapter_dir, self.track_dir):
            shutil.rmtree(folder, ignore_errors=True)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)

    def has_progress(self) -> bool:
        """Whether there is something to lose: a checkpoint or a result."""
        return self.record_file.exists() or any(self.checkpoints_dir.glob("checkpoint-*"))

    def is_trained(self) -> bool:
        """Whether the adapter is there, and at most answers and record are missing."""
        past = timeline(self.events())
        return bool(past) and past[-1]["event"] == "finish"

    def _is_run(self) -> bool:
        return self.recipe_file.exists() or self._lock_file.exists()

    # What was asked, and what was chosen.

    def write_recipe(self, recipe: Recipe) -> None:
        """Every setting, defaults too: a later Luthier with other defaults reads the same run.

        Raises RunError rather than keep an address with a password or a signature in it.
        """
        refuse_secrets(recipe)
        text = yaml.dump(
            recipe.model_dump(mode="json"), Dumper=_ExactDumper, sort_keys=False, allow_unicode=True, width=1000
        )
        _replace(self.recipe_file, text)

    def read_recipe(self) -> Recipe:
        """The recipe exactly as `write_recipe` got it. Raises RunError."""
        from pydantic import ValidationError

        from luthier.recipe.schema import Recipe

        again = "start the run again from your recipe with --fresh"
        try:
            return Recipe.model_validate(yaml.safe_load(self.recipe_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise RunError(Problem(str(self.path), "there is no run here (no recipe.yaml)", "luthier runs")) from None
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise RunError(Problem(str(self.recipe_file), f"not a recipe of this Luthier: {wrong}", again)) from None
        except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(Problem(str(self.recipe_file), f"not readable as YAML: {error}", again)) from None

    def write_resolved(self, choices: Mapping[str, Choice[Any]]) -> None:
        rows = [{"setting": setting, **vars(choice)} for setting, choice in choices.items()]
        _replace(self.resolved_file, _to_json(rows, indent=2))

    def read_resolved(self) -> dict[str, Choice[Any]]:
        """Empty where the run has not come that far."""
        rows = _read_json(self.resolved_file, list) or []
        try:
            return {row["setting"]: Choice(row["value"], row["reason"]) for row in rows}
        except (KeyError, TypeError):
            raise _damaged(self.resolved_file, "not a list of settings") from None

    def check_files(self, fingerprint: str) -> None:
        """Raises RunError where the data files are not those that the run began with."""
        began_with = self.read_resolved().get("data.files")
        if began_with is not None and began_with.value != fingerprint:
            what = "the data files have changed since this run began, so which rows it held out is no longer known"
            fix = "put them back as they were, or train again: luthier train RECIPE --fresh"
            raise RunError(Problem(str(self.path), what, fix))

    # What happened.

    def log(self, event: Mapping[str, object]) -> None:
        """Append one event, stamped with the time unless it has one. What a later start relies on is on disk then."""
        line = masked(_to_json({"time": time.time(), **event})).encode(errors="backslashreplace") + b"\n"
        with self.events_file.open("ab+") as file:
            _mend_end(file)
            file.write(line)
        if event["event"] in ("save", "finish"):
            disk.sync(self.events_file)

    def events(self) -> list[Event]:
        """All events in the order they were written. A line that was being written when the run died is left out.

        Raises RunError for damage anywhere else.
        """
        try:
            *lines, last = self.events_file.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        if parse_event(last) is not None:
            lines.append(last)
        found = [parse_event(line) for line in lines]
        damaged = [number for number, event in enumerate(found, 1) if event is None]
        if damaged:
            what = f"line {damaged[0]} is damaged and cannot be read"
            raise RunError(Problem(str(self.events_file), what, "delete that line, or start again with --fresh"))
        return [event for event in found if event is not None]

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write run.json, whole or not at all. Its presence means that the run is finished: write it last."""
        _replace(self.record_file, _to_json(record, indent=2))

    def record(self) -> dict[str, Any] | None:
        """run.json, or None while the run is not finished. Raises RunError where it is not what a run writes."""
        found: dict[str, Any] | None = _read_json(self.record_file, dict)
        if found is not None and (wrong := shape.problems(found)):
            raise _damaged(self.record_file, "; ".join(wrong[:3]))
        return found

    # Where it stands.

    def write_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """What `luthier eval` found, whole or not at all."""
        _replace(self.evaluation_file, _to_json(evaluation, indent=2))

    def state(self) -> str:
        """Where it stands: empty, not started, running (pid N), finished; or how it ended early, and at which step.

        "stopped" was asked for, "failed" met an error, "interrupted" was killed or lost its power.
        """
        if self.record_file.exists():
            return "finished"
        owner = self.owner()
        if owner is not None:
            elsewhere = "" if owner["host"] == socket.gethostname() else f" on {owner['host']}"
            return f"running (pid {owner['pid']}{elsewhere})"
        past = timeline(self.events())
        if not past:
            return "not started" if self.recipe_file.exists() else "empty"
        how = {"stop": "stopped", "fail": "failed"}.get(past[-1]["event"], "interrupted")
        return f"{how} at step {past[-1].get('step', 0)}"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run folder for this process. Raises RunError that names the process which already holds it.

        The operating system holds the lock, so that of a dead process is free. running.json only says whose it is.
        """
        import filelock

        lock = filelock.FileLock(self._lock_file)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            owner = self.owner()
            who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
            fix = "wait for it, stop it with Ctrl-C there, or choose another output folder"
            raise RunError(Problem(str(self.path), f"this run is in use by {who}", fix)) from None
        try:
            _replace(self._owner_file, _to_json(_this_process()))
            self._tidy()
            yield
        finally:
            self._owner_file.unlink(missing_ok=True)
            lock.release()

    def _tidy(self) -> None:
        """Removes what a killed process was writing beside its place."""
        for left in self.path.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        half = disk.partial(self.adapter_dir)
        if half.exists():
            console.warn("adapter/ was being written when the run was killed, and is written again")
            shutil.rmtree(half)

    def owner(self) -> dict[str, Any] | None:
        """Who holds the lock, or None where that process is gone. One on another host is taken at its word."""
        owner: dict[str, Any] | None = _read_json(self._owner_file, dict)
        if owner is None or owner["host"] != socket.gethostname():
            return owner
        return owner if _is_alive(owner["pid"], owner["started"]) else None


class _ExactDumper(yaml.SafeDumper):
    """Quotes and escapes any text that YAML's plain style would fold: PyYAML reads a bare U+0085 back as a space."""


def _exact_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_ExactDumper.add_representer(str, _exact_text)

_FILES = ("run.json", "evaluation.json", "resolved.json", "events.jsonl", "ledger.jsonl", "report.html", "recipe.yaml")


def list_runs(folder: Path) -> list[RunFolder]:
    """The runs directly inside `folder`, by name."""
    return [RunFolder(recipe.parent) for recipe in sorted(folder.glob("*/recipe.yaml"))]


def timeline(events: list[Event]) -> list[Event]:
    """The events that count: what a run did after its last checkpoint is done again when it goes on from there.

    steps 1 2 3 4 5, killed; goes on from step 3: 4 5 6   ->   1 2 3 (start) 4 5 6
    """
    kept: list[Event] = []
    for event in events:
        if event["event"] == "start":
            step = event.get("step", 0) if event.get("resumed") else -1
            kept = [before for before in kept if before.get("step", 0) <= step]
        kept.append(event)
    return kept


def _this_process() -> dict[str, Any]:
    import psutil

    return {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": socket.gethostname()}


def _is_alive(pid: int, started: float) -> bool:
    """Whether that very process lives; a later one may have got its number. Clocks are set by a second or two."""
    import psutil

    try:
        return abs(psutil.Process(pid).create_time() - started) < 5
    except psutil.NoSuchProcess:
        return False


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(console.finite(value), ensure_ascii=False, indent=indent, allow_nan=False)


def _read_json(file: Path, kind: type) -> Any:
    """The list or dict in a file, None where there is no file. Raises RunError for anything else."""
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"not readable as JSON: {error}") from None
    if not isinstance(value, kind):
        raise _damaged(file, f"holds no JSON {'object' if kind is dict else 'array'}")
    return value


def _damaged(file: Path, what: str) -> RunError:
    fix = "the file was changed by hand or the disk is damaged; start again with --fresh"
    return RunError(Problem(str(file), what, fix))


def _replace(file: Path, text: str) -> None:
    """Write a file whole or not at all, without tokens. A lone surrogate, which UTF-8 lacks, becomes its escape."""
    disk.replace(file, masked(text).encode(errors="backslashreplace"))


def parse_event(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    return event if isinstance(event.get("step", 0), int) else None


def _mend_end(file: Any) -> None:
    """Make the file end with a whole line: a killed process may have left part of one behind."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    whole, _, rest = file.read().rpartition(b"\n")
    if parse_event(rest) is not None:
        file.write(b"\n")
    else:
        file.truncate(len(whole) + 1 if whole else 0)
