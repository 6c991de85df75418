"""What a finished run comes to, on the screen: shared by `train` and `demo`."""

from __future__ import annotations

from typing import Any

from luthier import console
from luthier.report.page import verdict
from luthier.report.record import RunFolder


def show_run(run: RunFolder) -> None:
    """Answers before and after, the losses, and what to type next; the record with `--json`."""
    record = run.record() or {}
    show_answers(record["answers"])
    result = record["result"]
    console.say()
    console.say(verdict(result).text, style="bold green")
    ending = ending_line(result)
    if ending is not None:
        console.say(ending)
    console.say(
        f"{result['steps']} steps in {result['seconds'] / 60:.1f} min, {result['samples_per_second']:.2f} rows/s, "
        f"{result['tokens_per_second']:.0f} tokens/s, at most {result['peak_memory_bytes'] / 1e9:.1f} GB"
    )
    console.say()
    console.say(f"report   {run.report_file}")
    console.say(f"chat     {console.command(f'chat {run.path}')}")
    console.say(f"serve    {console.command(f'serve {run.path} --base')}")
    console.say(f"export   {console.command(f'export {run.path} --to merged -o merged')}")
    console.result({"ok": True, "run": str(run.path), **record})


def ending_line(result: dict[str, Any]) -> str | None:
    """Whether it learned to stop. None where no row was held out."""
    before, after = (result.get(f"end_probability_{when}") for when in ("before", "after"))
    if before is None or after is None:
        return None
    return f"Where held-out answers end it stops with probability {before:.0%} before training, {after:.0%} after"


def show_answers(answers: list[dict[str, Any]]) -> None:
    """Side by side: the prompt, what the base answered, what the tuned model answers."""
    rows = [(answer["prompt"], _short(answer["base"]), _short(answer["tuned"])) for answer in answers]
    console.table(("asked", "before", "after"), rows, title="Answers", lines=True)


def _short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[:most] + " …"
