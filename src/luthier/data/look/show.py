"""A look at data in the terminal: the findings first, each with what to do; then what the rows are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from luthier import console
from luthier.data import preview
from luthier.data.look.columns import Column
from luthier.data.look.finding import Finding
from luthier.data.look.look import Look

SIGNS = {"problem": ("✗", "bold red"), "doubt": ("!", "bold yellow"), "note": ("·", "dim")}


def show(look: Look) -> None:
    """All but the rows as tokens, which `preview.show_rows` shows."""
    for form, file in zip(look.schema.formats, look.files, strict=False):
        kind = f"{file['rows']:,} rows, {form.name} ({file['kind']}, {file['encoding']})"
        console.say(f"Data {file['path']}: {kind}. {form.confidence:.0%} sure: {form.reason}")
    _show_findings(look)
    _show_facts(look)
    if look.ledger is not None and look.tokens is not None:
        look.ledger.show()
        preview.show_lengths(look.tokens.lengths)
    else:
        preview.show_lengths(look.characters, unit="characters")


def _show_findings(look: Look) -> None:
    from rich.table import Table
    from rich.text import Text

    if not look.findings:
        console.say("Nothing was found that speaks against these rows.", style="bold green")
        return
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column(overflow="fold")
    for finding in look.findings:
        sign, style = SIGNS[finding.weight]
        text = Text(finding.title, "bold")
        text.append(f"\n→ {finding.todo}{fixed(finding)}", "not bold")
        for where, excerpt in places(look, finding):
            text.append(f"\n{where}  {excerpt}", "not bold dim")
        grid.add_row(Text(sign, style), Text(f"{finding.count:,}", style), text)
    console.say("\nWhat was found", style="italic")
    console.show(grid)


def _show_facts(look: Look) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts(look):
        grid.add_row(Text(name, "bold"), Text(value))
    console.say("\nWhat the rows are", style="italic")
    console.show(grid)


def fixed(finding: Finding) -> str:
    """What `--fix` does about it, as the end of a sentence."""
    return f" (--fix: {finding.fix})" if finding.fix else ""


def places(look: Look, finding: Finding) -> list[tuple[str, str]]:
    return [(short(look, place.where), place.text) for place in finding.places]


def short(look: Look, where: str) -> str:
    """A place without the file's name, where there is only one."""
    return where.replace(f"{look.files[0]['path']}, ", "") if len(look.files) == 1 else where


def facts(look: Look) -> Iterator[tuple[str, str]]:
    """What there is to know in a line each, the same in the terminal and on the page."""
    total = sum(form.rows for form in look.schema.formats)
    yield "columns", "; ".join(_column(column, total) for column in look.schema.columns.values())
    if look.scripts.questions:
        yield "questions in", _shares(look.scripts.questions)
    yield "answers in", _shares(look.scripts.answers)
    sizes = look.characters.percentiles
    yield "characters of a row", ", ".join(f"{name} {value:,}" for name, value in sizes.items())
    if look.tokens is None:
        return
    lengths, prefix = look.tokens.lengths, look.tokens.prefix
    yield "tokens", f"{lengths.tokens:,} in {lengths.rows:,} sequences, {lengths.labelled_share:.1%} of them trained"
    about = f" (from {look.tokens.role_rows:,} rows)" if look.tokens.role_rows < lengths.rows else ""
    yield "tokens by role", _shares(look.tokens.roles) + about
    share = prefix.repeated / lengths.tokens
    yield (
        "shared prefix",
        f"{prefix.sequences:,} sequences begin with the same {prefix.tokens:,} tokens: {share:.1%} of all tokens are"
        " repetitions that a micro-batch computes once",
    )


def _column(column: Column, total: int) -> str:
    name = (
        f"{preview.printable(column.name)[:40]} (not used)" if not column.used else preview.printable(column.name)[:40]
    )
    if not column.filled:
        return f"{name}: empty"
    kinds = " or ".join(column.kinds)
    missing = total - column.filled
    return f"{name}: {kinds}" + (f", empty in {missing:,}" if missing else "")


def _shares(counts: Mapping[str, Any]) -> str:
    """`Chinese 98.2%, Latin 1.8%`"""
    total = sum(counts.values()) or 1
    return ", ".join(f"{name} {count / total:.1%}" for name, count in counts.items())
