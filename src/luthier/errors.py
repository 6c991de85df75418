"""Every error a user can meet, on one page.

    LuthierError            exit status
    ├── InputError          2   what the user gave cannot be used
    │   ├── RecipeError         a setting: unknown, of the wrong type, or contradicting another
    │   ├── DataError           a data file, row or field
    │   ├── ModelError          weights, tokenizer, chat template or adapter
    │   ├── HubError            a model or data set that cannot be fetched
    │   ├── TrackerError        a tracker that is asked for and not installed
    │   └── RunError            a run folder: missing, taken, finished, or of another recipe
    ├── CheckFailed         1   Luthier's own check of a result did not hold
    └── Stopped             3   stopped before the end, and resumable

Mistakes of Luthier itself stay ordinary Python exceptions: a traceback is a bug report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from luthier.secrets import masked


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the place, what was found and expected, and what to type next."""

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}\n  fix: {self.fix}"


class LuthierError(Exception):
    """Base of all errors shown without a traceback. Holds every problem found, not only the first; no token in any."""

    exit_status = 1

    def __init__(self, *problems: Problem) -> None:
        if not problems:
            raise ValueError("an error names at least one problem")
        self.problems = tuple(Problem(masked(p.where), masked(p.what), masked(p.fix)) for p in problems)
        super().__init__("\n".join(map(str, self.problems)))


class InputError(LuthierError):
    exit_status = 2


class RecipeError(InputError):
    pass


class DataError(InputError):
    pass


class ModelError(InputError):
    pass


class HubError(InputError):
    pass


class TrackerError(InputError):
    pass


class RunError(InputError):
    pass


def all_of(*attempts: Callable[[], Any]) -> list[Any]:
    """Makes every attempt, and gives their results; or raises one InputError with the problems of all that failed."""
    results, errors = [], []
    for attempt in attempts:
        try:
            results.append(attempt())
        except InputError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else InputError(*(each for error in errors for each in error.problems))
    return results


class CheckFailed(LuthierError):
    exit_status = 1


class Stopped(LuthierError):
    exit_status = 3


class Terminated(BaseException):
    """SIGTERM or SIGHUP, by name, as Ctrl-C is KeyboardInterrupt: whoever catches Ctrl-C to go on does not catch it."""
