"""SwanLab, TensorBoard and W&B beside the run's own events: on this machine, unless the recipe says `cloud: true`.

A tracker that is missing is found before the run (`check`). One that fails later never stops the training.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from transformers.trainer_callback import TrainerCallback

from luthier import console
from luthier.errors import Problem, RecipeError
from luthier.recipe.schema import TrackSettings
from luthier.report import words
from luthier.report.record import RunFolder

SAMPLE = "sample"
"""What trackers call the answers to one prompt, by step."""


@dataclass(frozen=True)
class Place:
    """Where one tracker keeps a run: `project` and `name` are its own words for grouping, `cloud` sends it away."""

    folder: Path
    project: str
    name: str
    cloud: bool


@dataclass(frozen=True)
class Open:
    """A tracker at work: its callback for the Trainer, how to end its session, and how to keep `text(step, prompt,
    answer)` of a sample."""

    callback: TrainerCallback
    finish: Callable[[], object]
    text: Callable[[int, str, str], object]


@dataclass(frozen=True)
class Tracker:
    """`start(place, step)` opens a session of a run that begins after `step`; `hint(place)` says how to look at it."""

    title: str
    module: str
    start: Callable[[Place, int], Open]
    hint: Callable[[Place], str]
    has_account: Callable[[], bool] | None = None
    log_in: str = ""


def check(settings: TrackSettings) -> list[Problem]:
    """All that keeps the trackers from working, before anything starts."""
    problems = [problem for name in settings.to for problem in _check(TRACKERS[name], settings.cloud)]
    if settings.cloud and not any(TRACKERS[name].has_account for name in settings.to):
        what = "there is no tracker with a cloud among them"
        problems.append(Problem("track.cloud", what, "add swanlab or wandb to track.to, or set track.cloud=false"))
    return problems


def callbacks(settings: TrackSettings, run: RunFolder, name: str) -> list[Guarded]:
    """A callback for each tracker, after saying where it keeps the run `name` and how to look at it.

    Raises RecipeError with all that `check` finds.
    """
    problems = check(settings)
    if problems:
        raise RecipeError(*problems)
    made = []
    for key in settings.to:
        place = Place(run.track_dir / key, settings.project, name, settings.cloud)
        console.say(f"{TRACKERS[key].title}: {TRACKERS[key].hint(place)}")
        made.append(Guarded(TRACKERS[key], place))
    return made


class Guarded(TrainerCallback):  # type: ignore[misc]
    """A tracker that starts with the training, ends with it, and whose failure is said once and ends only itself.

    `close()` ends its session where the training ended otherwise; more than once does no harm.
    """

    def __init__(self, tracker: Tracker, place: Place) -> None:
        self._tracker = tracker
        self._place = place
        self._open: Open | None = None
        self._over = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pass("on_train_begin", args, state, control, kwargs)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pass("on_log", args, state, control, kwargs)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pass("on_evaluate", args, state, control, kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pass("on_save", args, state, control, kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pass("on_train_end", args, state, control, kwargs)
        self.close()

    def event(self, event: Mapping[str, Any]) -> None:
        """One of the run's own events, for what the Trainer does not tell of: sample answers."""
        if event["event"] == "sample" and self._open is not None and not self._over:
            with self._guard():
                self._open.text(event["step"], event["prompt"], event["answer"])

    def close(self) -> None:
        with self._guard():
            opened, self._open, self._over = self._open, None, True
            if opened is not None:
                opened.finish()

    def _pass(self, event: str, args: Any, state: Any, control: Any, kwargs: dict[str, Any]) -> None:
        if self._over or not state.is_world_process_zero:
            return
        with self._guard():
            self._open = self._open or self._tracker.start(self._place, state.global_step)
            getattr(self._open.callback, event)(args, state, control, **kwargs)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Trackers print as they like: standard output stays ours."""
        try:
            with contextlib.redirect_stdout(_Aside()):
                yield
        except Exception as error:
            self._over = True
            reason = " ".join(str(error).split()) or type(error).__name__
            console.warn(f"{self._tracker.title} failed and tracks no more: {reason}. The training goes on.")


class _Aside(io.TextIOBase):
    """Standard error as it is when something is written. A rich console would know a live view's stand-in for it by
    its attributes, and write past it onto the view."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _check(tracker: Tracker, cloud: bool) -> list[Problem]:
    if importlib.util.find_spec(tracker.module) is None:
        install = f'"{sys.executable}" -m pip install {tracker.module}'
        return [Problem("track.to", f"{tracker.title} is not installed", install)]
    if cloud and tracker.has_account is not None and not tracker.has_account():
        fix = f"{tracker.log_in}, or set track.cloud=false"
        return [Problem("track.cloud", f"no {tracker.title} account is known on this machine", fix)]
    return []


def _command(program: str, arguments: str, path: Path) -> str:
    """A command as it can be typed here, also while the project's environment is not on the path."""
    found = program if shutil.which(program) else words.typed(Path(sys.executable).with_name(program))
    return f"{found} {arguments} {words.typed(path)}"


# SwanLab. transformers' own report_to="swanlab" fails with swanlab 0.10, which raises where it used to answer None.


def _swanlab_mode(place: Place) -> str:
    if place.cloud:
        return "online"
    return "local" if _has_swanlab_dashboard() else "offline"


def _has_swanlab_dashboard() -> bool:
    """Whether `local` works: without the very version of swanboard that SwanLab names it trains but logs an error."""
    wanted = [need for need in map(Requirement, metadata.requires("swanlab") or []) if need.name == "swanboard"]
    with contextlib.suppress(metadata.PackageNotFoundError):
        return any(need.specifier.contains(metadata.version("swanboard"), prereleases=True) for need in wanted)
    return False


def _start_swanlab(place: Place, step: int) -> Open:
    import swanlab
    from swanlab.integration.transformers import SwanLabCallback

    swanlab.init(
        project=place.project,
        name=place.name,
        mode=_swanlab_mode(place),
        log_dir=str(place.folder),
        settings=swanlab.Settings(terminal=swanlab.Settings.Terminal(proxy_type="none")),  # the live view stays whole
        reinit=True,
    )

    def text(step: int, prompt: str, answer: str) -> None:
        swanlab.log({SAMPLE: swanlab.Text(answer, caption=prompt)}, step=step)

    return Open(SwanLabCallback(), swanlab.finish, text)


def _swanlab_hint(place: Place) -> str:
    sync = _command("swanlab", "sync", place.folder / "run-…")
    return {
        "online": f"sends this run to project {place.project} of your account",
        "local": f"on this machine. Look at it with: {_command('swanlab', 'watch', place.folder)}",
        "offline": f"in files under {place.folder}. Send them with: {sync} (to look at later "
        "runs on this machine: pip install swanlab[dashboard])",
    }[_swanlab_mode(place)]


def _has_swanlab_account() -> bool:
    import swanlab

    return swanlab.Settings().api_key is not None


# TensorBoard


def _start_tensorboard(place: Place, step: int) -> Open:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    again = step + 1 if step else None  # what was logged after the checkpoint is done again
    writer = SummaryWriter(str(place.folder), purge_step=again)

    def text(step: int, prompt: str, answer: str) -> None:
        writer.add_text(SAMPLE, f"**{prompt}**\n\n{answer}", step)  # shown as Markdown

    return Open(TensorBoardCallback(writer), writer.close, text)


def _tensorboard_hint(place: Place) -> str:
    return f"on this machine. Look at it with: {_command('tensorboard', '--logdir', place.folder)}"


# W&B


def _start_wandb(place: Place, step: int) -> Open:
    import wandb
    from transformers.integrations import WandbCallback

    place.folder.mkdir(parents=True, exist_ok=True)
    wandb.init(
        project=place.project,
        name=place.name,
        dir=str(place.folder),
        mode="online" if place.cloud else "offline",
        settings=wandb.Settings(silent=True, console="off"),
        reinit="finish_previous",
    )
    rows: list[tuple[int, str, str]] = []

    def text(step: int, prompt: str, answer: str) -> None:
        rows.append((step, prompt, answer))  # W&B shows a run's last table, so each holds all of them
        table = wandb.Table(columns=["step", "prompt", "answer"], data=rows)
        wandb.log({SAMPLE: table, "train/global_step": step})

    return Open(WandbCallback(), wandb.finish, text)


def _wandb_hint(place: Place) -> str:
    if place.cloud:
        return f"sends this run to project {place.project} of your account"
    sync = _command("wandb", "sync", place.folder / "wandb" / "offline-run-…")
    return f"in files under {place.folder}. Send them with: {sync}"


def _has_wandb_account() -> bool:
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


TRACKERS = {
    "swanlab": Tracker("SwanLab", "swanlab", _start_swanlab, _swanlab_hint, _has_swanlab_account, "swanlab login"),
    "tensorboard": Tracker("TensorBoard", "tensorboard", _start_tensorboard, _tensorboard_hint),
    "wandb": Tracker("W&B", "wandb", _start_wandb, _wandb_hint, _has_wandb_account, "wandb login"),
}
