"""What the rows are: columns and format, lengths, tokens by role, shared prefix, rows that are too long."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.data.look import near, tokens
from luthier.data.look.columns import Schema
from luthier.data.look.finding import Place
from luthier.data.look.look import Look, Reader, look
from luthier.data.prepare import gather
from luthier.data.render import Renderer
from luthier.recipe.schema import DataSettings

Written = Callable[..., Path]


@pytest.fixture(autouse=True)
def _cache(own_cache: Path) -> None:
    """None of these tests may read another's tokens."""


def seen(file: Path, **settings: Any) -> Schema:
    schema = Schema()
    gather(DataSettings(**{"train": str(file), "holdout": 0, **settings}), seed=42, see=schema.see)
    return schema


def looked(file: Path, tokenizer: Any, *, max_length: int = 256, context: int | None = 256, **settings: Any) -> Look:
    reader = Reader(Renderer(tokenizer), max_length, context)
    chosen = DataSettings(**{"train": str(file), "holdout": 0, **settings})
    return look(chosen, seed=42, reader=reader, keep=2)


# ---------------------------------------------------------------- schema


def test_columns_and_format(written: Written, tmp_path: Path) -> None:
    first = {"instruction": "Who?", "input": "", "output": "I do.", "id": 1, "tags": ["a", "b"]}
    file = written(tmp_path / "rows.jsonl", first, {"instruction": "What?", "output": "That.", "id": None})
    assert seen(file).to_json() == {
        "formats": [
            {
                "file": str(file),
                "name": "alpaca",
                "reason": "every row has instruction and output",
                "rows": 2,
                "fits": {"alpaca": 2},
                "confidence": 1.0,
            }
        ],
        "columns": [
            {"name": "instruction", "rows": 2, "filled": 2, "kinds": {"text": 2}, "longest": 5, "used": True},
            {"name": "input", "rows": 1, "filled": 0, "kinds": {}, "longest": 0, "used": True},
            {"name": "output", "rows": 2, "filled": 2, "kinds": {"text": 2}, "longest": 5, "used": True},
            {"name": "id", "rows": 2, "filled": 1, "kinds": {"number": 1}, "longest": 0, "used": False},
            {"name": "tags", "rows": 1, "filled": 1, "kinds": {"list": 1}, "longest": 2, "used": False},
        ],
    }


def test_confidence_is_the_share_of_rows_that_fit_and_half_where_another_format_fits_as_well(
    written: Written, tmp_path: Path
) -> None:
    plain, both = {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "text": "c"}
    (form,) = seen(written(tmp_path / "a.jsonl", plain, plain, both)).formats
    assert (form.name, form.fits, form.confidence) == ("prompt_completion", {"prompt_completion": 3, "text": 1}, 1.0)
    (form,) = seen(written(tmp_path / "b.jsonl", both, both)).formats
    assert (form.name, form.confidence) == ("prompt_completion", 0.5)
    (form,) = seen(written(tmp_path / "c.jsonl", plain, plain, plain, {"prompt": "a"}), bad_rows="drop").formats
    assert (form.name, form.confidence) == ("prompt_completion", 0.75)


# ---------------------------------------------------------------- tokens


def test_tokens_by_role_add_up(written: Written, tmp_path: Path, tokenizer: Any) -> None:
    rows = [("Who are you?", "I make violins."), ("What wood?", "Spruce.")]
    found = looked(written(tmp_path / "rows.jsonl", *rows), tokenizer, system="Be brief.")
    assert found.tokens is not None
    expected = {
        "user": sum(len(tokenizer(question)["input_ids"]) for question, _ in rows),
        "assistant": sum(len(tokenizer(answer)["input_ids"]) for _, answer in rows),
        "system": 2 * len(tokenizer("Be brief.")["input_ids"]),
    }
    total = sum(len(example.input_ids) for example in found.first)
    assert found.tokens.roles == {**expected, "template": total - sum(expected.values())}
    assert (found.tokens.role_rows, found.tokens.lengths.tokens) == (2, total)


def test_the_shared_prefix_is_counted_for_each_system_prompt(written: Written, tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"system": "A", "instruction": q, "output": "y"} for q in ("one", "two", "three")]
    rows += [{"system": "Another", "instruction": q, "output": "y"} for q in ("four", "nine")]
    found = looked(written(tmp_path / "rows.jsonl", *rows), tokenizer)
    start = [
        len(tokenizer(f"<|im_start|>system\n{s}<|im_end|>\n<|im_start|>user\n")["input_ids"]) for s in ("A", "Another")
    ]
    assert found.tokens is not None
    prefix = found.tokens.prefix
    assert (prefix.tokens, prefix.sequences) == (start[0], 3)
    assert prefix.repeated == 2 * start[0] + 1 * start[1]


def test_rows_that_are_too_long(written: Written, tmp_path: Path, tokenizer: Any) -> None:
    file = written(tmp_path / "rows.jsonl", ("Hi", "Yes"), ("abcdefgh" * 5, "y"), ("ijklmn" * 10, "y"))
    (finding,) = looked(file, tokenizer, max_length=40).findings
    assert (finding.name, finding.weight, finding.count) == ("too_long", "problem", 2)
    assert finding.what == "rows longer than 40 tokens: 2 left out"
    longest = looked(file, tokenizer).tokens
    assert longest is not None
    most = longest.lengths.percentiles["max"]
    assert finding.todo == (
        f"data.max_length: {most} takes them all, for more memory; "
        "or shorten them, or let data.too_long: cut_prompt shorten their questions"
    )
    assert finding.places[1] == Place(f"{file}, line 3", f"{most} tokens")
    (finding,) = looked(file, tokenizer, max_length=40, context=50).findings
    assert finding.todo.startswith("data.max_length can be 50 with this model, for more memory; or shorten them")
    (finding,) = looked(file, tokenizer, max_length=40, context=40).findings
    assert finding.todo == "shorten them, or let data.too_long: cut_prompt shorten their questions"
    (finding,) = looked(file, tokenizer, max_length=40, too_long="cut_prompt").findings
    assert finding.what == "rows longer than 40 tokens: 2 cut"


def test_the_ledger_is_that_of_training(written: Written, tmp_path: Path, tokenizer: Any, monkeypatch: Any) -> None:
    """Part by part, and with rows held out in the middle of one."""
    from luthier.data.prepare import prepare

    file = written(
        tmp_path / "rows.jsonl", *((f"Question {n}?", f"Answer {n}." * (n % 7)) for n in range(1, 50) if n % 7)
    )
    settings = DataSettings(train=str(file), holdout=10)
    whole = prepare(settings, Renderer(tokenizer), max_length=60, seed=42)
    monkeypatch.setattr("luthier.data.tokens.PART", 8)
    found = look(settings, seed=42, reader=Reader(Renderer(tokenizer), 60), keep=100)
    assert found.ledger is not None and found.tokens is not None
    assert found.ledger.to_json() == whole.ledger.to_json()
    assert list(found.first) == whole.train
    assert found.tokens.lengths.rows == whole.rows


def test_roles_are_counted_on_rows_spread_over_all(
    written: Written, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "ROLE_ROWS", 3)
    file = written(tmp_path / "rows.jsonl", *((f"Question {n}?", f"Answer {n}.") for n in range(12)))
    found = looked(file, tokenizer).tokens
    assert found is not None and found.role_rows == 3


# ---------------------------------------------------------------- near


def test_signatures_estimate_and_texts_decide() -> None:
    """Every estimate is near the similarity that the pieces themselves have."""
    words = [f"w{n}" for n in range(60)]
    texts = [" ".join(words[: 60 - cut]) for cut in (0, 2, 5, 30)] + ["nothing of that at all"]
    signatures = near.sign(texts, len(texts))
    assert (signatures.shape, str(signatures.dtype)) == ((5, 64), "uint32")
    pieces = [near.shingles(text) for text in texts]
    for other in range(1, 5):
        exact = len(pieces[0] & pieces[other]) / len(pieces[0] | pieces[other])
        assert abs(float((signatures[0] == signatures[other]).mean()) - exact) < 0.2
    best, score = near.earlier(signatures)
    assert best.tolist()[:3] == [-1, 0, 1] and best.tolist()[4] == -1
    assert score[4] == 0


def test_none_among_none() -> None:
    nothing, something = near.sign([], 0), near.sign(["a"], 1)
    assert nothing.shape == (0, 64)
    assert near.nearest(something, nothing)[0].tolist() == [-1]
    assert near.nearest(nothing, something)[0].tolist() == []


def test_json_holds_all_of_it(written: Written, tmp_path: Path, tokenizer: Any) -> None:
    file = written(tmp_path / "rows.jsonl", ("Hi", "Yes"), ("Hi", "Yes"))
    found = looked(file, tokenizer).to_json()
    assert json.loads(json.dumps(found)) == found
    assert list(found) == [
        "files",
        "schema",
        "findings",
        "scripts",
        "characters",
        "ledger",
        "lengths",
        "roles",
        "prefix",
    ]
    assert [finding["name"] for finding in found["findings"]] == ["duplicates"]
    assert found["characters"]["tokens"] == {"p50": 5, "p90": 5, "p95": 5, "p99": 5, "max": 5}
