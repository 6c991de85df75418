"""The load from many clients, on a small scale: nothing goes wrong but what is made to."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from serving import Running, serving

from benchmarks.load import Load, Seen, main, percentiles, report, run
from luthier.server.answering import Limits


def test_a_mixed_load_sees_no_error(shelf: Path) -> None:
    with serving(shelf, "violin", "lute", limits=Limits(waiting=8, context=256)) as server:
        load = Load(f"{server.url}/v1", ("base", "violin", "lute"), 3, 16, 12, plain=False)
        seen, _ = asyncio.run(run(load))
    statuses = Counter(line["status"] for line in server.lines)
    assert seen.errors == {}
    assert statuses[400] + statuses[404] == seen.kinds["refused"]
    assert statuses[429] == seen.kinds["429"]
    assert statuses[500] == statuses[503] == 0
    assert min(len(seen.first), len(seen.gaps), seen.tokens, seen.kinds["streamed"], seen.kinds["whole"]) > 0


def test_what_goes_wrong_is_counted_by_kind(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([f"{server.url}/v1", "--models", "missing", "--seconds", "2", "--clients", "1", "--plain"])
    assert status == 1
    shown = capsys.readouterr().out
    assert '× RuntimeError: 404 {"error":{"message":"The model \'missing\' does not exist.' in shown


def test_the_report() -> None:
    seen = Seen(
        kinds=Counter(streamed=3, whole=1, cancelled=2),
        first=[0.1, 0.2, 0.3],
        gaps=[0.01] * 99 + [1.0],
        whole=[1.0, 2.0, 3.0, 4.0],
        tokens=80,
        memory=[(0, 1_000_000), (2, 3_000_000), (4, 2_000_000)],
    )
    load = Load("http://x/v1", ("a",), 4, 2, 8, plain=False)
    assert report(load, seen, 4.0) == (
        "clients, seconds                           2, 4\n"
        "requests                                   2 cancelled, 3 streamed, 1 whole\n"
        "answers a second                           1.00\n"
        "tokens a second                            20.0\n"
        "to the first text, ms (p50 / p90 / p99)    200 / 300 / 300\n"
        "from text to text, ms (p50 / p90 / p99)    10 / 10 / 1,000\n"
        "a whole answer, ms (p50 / p90 / p99)       3,000 / 4,000 / 4,000\n"
        "errors                                     none\n"
        "memory, MB                                 1 first, then up to 3, at the end up to 2"
    )
    assert percentiles([]) == "—"
