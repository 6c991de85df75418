from __future__ import annotations

import json
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from luthier import console
from luthier.cli.doctor import doctor
from luthier.hardware import facts
from luthier.hardware.probe import Hardware

MACHINE = facts.Facts(
    Hardware("Linux", "Debian 12", "3.12.3", "AMD EPYC", 2, 2, ("avx2",), 24 << 30, 20 << 30, 80_000_000_000, ()),
    facts.Torch("2.13.0+cpu", rates={"cpu": {"float32": 143e9, "bfloat16": 1.3e9, "float16": 1.2e9}}),
    environ={},
    libraries=(facts.Library("peft", "0.21.2", ">=0.21.2", fits=True),),
    hubs={"https://huggingface.co": "timed out"},
)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setattr(facts, "gather", lambda: MACHINE)
    monkeypatch.setattr(console, "_json", False)
    app = typer.Typer()
    app.command()(doctor)
    return app


def test_each_line_is_a_fact_with_its_verdict_and_its_fix(app: typer.Typer) -> None:
    done = CliRunner().invoke(app)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "✓ system        Debian 12",
        "✓ Python        3.12.3",
        "✓ CPU           AMD EPYC: 2 cores, 2 threads; avx2",
        "✓ memory        20.0 of 24.0 GiB free",
        "✓ disk          80 GB free",
        "✓ GPU           none found: Luthier computes on the CPU",
        "✓ torch         2.13.0+cpu, built for CPUs",
        "✓ torch on cpu  float32 143 GFLOP/s, bfloat16 1.3 GFLOP/s, float16 1.2 GFLOP/s; float32 is used",
        "✓ libraries     peft 0.21.2",
        "✓ hub           https://huggingface.co does not answer (timed out)",
        "! hub           no hub answers; local folders, cached models and the bundled model work all the same",
        "    → to fetch models, set a proxy (HTTPS_PROXY) or a mirror (HF_ENDPOINT=https://hf-mirror.com)",
        "",
        "This machine can train.",
    ]


def test_json_is_one_object_on_standard_output(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, ["--json"])
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert list(told) == ["ok", "findings", "hardware", "torch", "hubs"]
    assert told["ok"] is True
    assert told["findings"][1] == {"topic": "Python", "fact": "3.12.3", "verdict": "ok", "fix": ""}
    assert told["hardware"]["instructions"] == ["avx2"]
    assert told["torch"]["rates"]["cpu"]["float32"] == 143e9


def test_exit_status_1_when_training_cannot_work(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(MACHINE, torch=facts.Torch(problem="it is not installed"))
    monkeypatch.setattr(facts, "gather", lambda: broken)
    done = CliRunner().invoke(app, ["--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["ok"] is False
