"""`luthier doctor`: what this machine is, whether it can train, and what to do where it cannot."""

from __future__ import annotations

import dataclasses

import typer

from luthier import console

MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "bold red")}


def doctor(json: bool = typer.Option(False, "--json", help="One JSON object on standard output.")) -> None:
    """Look at this machine: hardware, drivers, torch, libraries, hubs. Exit status 1: cannot train."""
    if json:
        console.use_json()
    from luthier.hardware.doctor import can_train, examine
    from luthier.hardware.facts import gather

    facts = gather()
    findings = examine(facts)
    for finding in findings:
        mark, style = MARKS[finding.verdict]
        console.say(f"{mark} {finding.topic:<13} {finding.fact}", style=style if finding.verdict != "ok" else None)
        if finding.fix:
            console.say(f"    → {finding.fix}")
    ok = can_train(findings)
    console.say()
    console.say("This machine can train." if ok else "This machine cannot train yet: see ✗ above.")
    console.result(
        {
            "ok": ok,
            "findings": [vars(finding) for finding in findings],
            "hardware": facts.hardware.to_json(),
            "torch": dataclasses.asdict(facts.torch),
            "hubs": dict(facts.hubs),
        }
    )
    if not ok:
        raise typer.Exit(1)
