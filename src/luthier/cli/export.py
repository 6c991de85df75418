"""`luthier export`: a run's result in the form in which people use it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier import console

TARGETS = ("merged", "gguf", "ollama", "adapter")
QUANTS = ("q8_0", "q4_k_m", "f16")


def export(
    run: Annotated[Path | None, typer.Argument(help="The run's folder.")] = None,
    to: Annotated[str | None, typer.Option(help="merged, gguf, ollama or adapter.")] = None,
    quant: Annotated[str | None, typer.Option(help="Of gguf and ollama: q8_0 (the default), q4_k_m or f16.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the export.")] = None,
    verify: Annotated[Path | None, typer.Option(help="An export to measure again; RUN only if the run moved.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Export for transformers, llama.cpp or Ollama. Done only if it answers as the trained model does."""
    if json:
        console.use_json()
    _check(run, to, quant, output, verify)
    from luthier.export import export as exports
    from luthier.report.record import RunFolder

    opened = None if run is None else RunFolder.open(run)
    if verify is not None:
        folder, made = verify, exports.verify_again(verify, opened)
    else:
        assert opened is not None and output is not None
        folder, made = output, exports.export(opened, output, to=to, quant=quant)  # type: ignore[arg-type]
    _report(folder, made)


def _check(run: Path | None, to: str | None, quant: str | None, output: Path | None, verify: Path | None) -> None:
    if verify is not None:
        if to or quant or output:
            raise typer.BadParameter("goes alone, or with RUN: the export is there already", param_hint="--verify")
        return
    for value, hint in ((run, "RUN"), (to, "--to"), (output, "--output")):
        if value is None:
            raise typer.BadParameter("is needed: luthier export RUN --to gguf -o DIR", param_hint=hint)
    if to not in TARGETS:
        raise typer.BadParameter(f"{to!r} is not {', '.join(TARGETS)}", param_hint="--to")
    if quant not in (None, *QUANTS):
        raise typer.BadParameter(f"{quant!r} is not {', '.join(QUANTS)}", param_hint="--quant")


def _report(folder: Path, made: Any) -> None:
    from luthier.export.llama import INSTALL
    from luthier.report import words

    if made.state == "unverified":
        what = "only its weights were read back" if made.figures else "nothing was measured"
        console.warn(f"unverified: {what}, since llama.cpp, which runs it, is not installed")
        console.say(f"verify   {INSTALL}, then {console.command(f'export --verify {words.typed(folder)}')}")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    console.say(f"{made.state}  {folder}  ({words.size(size)})")
    if made.to == "merged":
        console.say(f"chat     {console.command(f'chat {words.typed(folder)}')}")
    console.say(f"push     {console.command(f'push {words.typed(folder)} --to ms:OWNER/NAME')}")
    console.result({"ok": True, "path": str(folder), "state": made.state, "bytes": size, **made.model_dump()})
