"""From files to examples: what becomes of every row, and of those that are too long."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.choice import Choice
from luthier.data.prepare import Prepared, pick_max_length, prepare
from luthier.data.render import Renderer
from luthier.errors import DataError, Problem
from luthier.recipe.schema import DataSettings


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def renderer(tokenizer: Any) -> Renderer:
    return Renderer(tokenizer)


def write(name: str, *rows: dict[str, Any]) -> str:
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return name


def pair(prompt: str, completion: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion}


def talk(*turns: str | dict[str, Any], system: str | None = None) -> dict[str, Any]:
    """Turns in alternation, a dict for one with more to say."""
    roles = ("user", "assistant")
    messages = [
        turn if isinstance(turn, dict) else {"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)
    ]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


def run(renderer: Renderer, max_length: int = 4096, **settings: Any) -> Prepared:
    return prepare(DataSettings(**{"holdout": 0, **settings}), renderer, max_length=max_length, seed=42)


def texts(renderer: Renderer, prepared: Prepared) -> list[str]:
    return [renderer.tokenizer.decode(example.input_ids) for example in prepared.train]


def lines(prepared: Prepared) -> list[tuple[str, str, str, str]]:
    """The ledger's entries: place, outcome, reason, detail."""
    return [
        (Path(str(e.source)).name, f"{e.outcome}, cut" if e.cut else e.outcome, e.reason, e.detail)
        for e in prepared.ledger.entries
    ]


def length_of(renderer: Renderer, prompt: str, completion: str) -> int:
    return len(
        renderer.tokenizer(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{completion}<|im_end|>")[
            "input_ids"
        ]
    )


# ---------------------------------------------------------------- the whole way


def test_every_row_read_has_one_outcome(renderer: Renderer) -> None:
    rows = write(
        "rows.jsonl",
        pair("Who are you?", "I make violins."),
        {**pair("What wood?", "Spruce."), "note": "x"},
        pair("Who are you?", "I make violins."),
        pair("Who are you?", "A luthier."),
        pair("Where?", "Cremona. " * 30),
    )
    other = write("other.jsonl", talk("a", {"role": "assistant", "content": "b", "train": False}))
    heldout = write("heldout.jsonl", pair("What wood?", "Maple."), pair("Since when?", "1690."))
    prepared = run(renderer, 64, train=[rows, other], heldout=heldout)

    assert prepared.ledger.counts() == {"read": 8, "used": 3, "dropped": 3, "heldout": 1, "duplicate": 1, "cut": 0}
    assert lines(prepared) == [
        ("rows.jsonl, line 3", "duplicate", "repeats an earlier row", "as line 1"),
        ("heldout.jsonl, line 1", "dropped", "a held-out row whose prompt is also in training", ""),
        (
            "rows.jsonl, line 5",
            "dropped",
            "longer than 64 tokens",
            f"{length_of(renderer, 'Where?', 'Cremona. ' * 30)} tokens",
        ),
        ("other.jsonl, line 1", "dropped", "no turn of it is to be trained", ""),
        ("heldout.jsonl, line 2", "heldout", "", ""),
    ]
    assert texts(renderer, prepared) == [
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\nI make violins.<|im_end|>",
        "<|im_start|>user\nWhat wood?<|im_end|>\n<|im_start|>assistant\nSpruce.<|im_end|>",
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\nA luthier.<|im_end|>",
    ]
    assert prepared.rows == 3
    assert [c.messages[-1].content for c in prepared.heldout_conversations] == ["1690."]
    assert [[renderer.tokenizer.decode(e.input_ids) for e in some] for some in prepared.heldout] == [
        ["<|im_start|>user\nSince when?<|im_end|>\n<|im_start|>assistant\n1690.<|im_end|>"]
    ]
    assert prepared.heldout_examples == prepared.heldout[0]
    assert prepared.unused_columns == ["note"]
    assert [conflict.answers for conflict in prepared.ledger.conflicts] == [2]
    assert [(Path(file["path"]).name, file["format"], file["rows"]) for file in prepared.files] == [
        ("rows.jsonl", "prompt_completion", 5),
        ("other.jsonl", "messages", 1),
        ("heldout.jsonl", "prompt_completion", 2),
    ]
    assert prepared.files[0]["sha256"] == hashlib.sha256(Path(rows).read_bytes()).hexdigest()
    assert (prepared.files[0]["kind"], prepared.files[0]["encoding"]) == ("jsonl", "utf-8")


def test_duplicates_may_stay(renderer: Renderer) -> None:
    rows = write("rows.jsonl", pair("a", "b"), pair("a", "b"))
    assert run(renderer, train=rows, duplicates="keep").ledger.counts()["used"] == 2


def test_rows_held_out_of_the_training_file(renderer: Renderer) -> None:
    rows = write("rows.jsonl", *(pair(f"Question {number}?", f"{number}.") for number in range(20)))
    prepared = run(renderer, train=rows, holdout="10%")
    counts = prepared.ledger.counts()
    assert (counts["used"], counts["heldout"]) == (18, 2)
    asked = {conversation.messages[0].content for conversation in prepared.heldout_conversations}
    assert len(asked) == 2
    assert not any(f"user\n{prompt}<" in text for prompt in asked for text in texts(renderer, prepared))
    again = run(renderer, train=rows, holdout="10%")
    assert (again.train, again.heldout) == (prepared.train, prepared.heldout)


def test_a_held_out_row_whose_earlier_prompt_is_trained_is_seen(renderer: Renderer) -> None:
    rows = write("rows.jsonl", pair("Who are you?", "I make violins."))
    heldout = write("heldout.jsonl", talk("Who are you?", "A baker.", "Of what?", "Bread."), talk("Of what?", "Wood."))
    prepared = run(renderer, train=rows, heldout=heldout)
    assert [(place, outcome) for place, outcome, _, _ in lines(prepared)] == [
        ("heldout.jsonl, line 1", "dropped"),
        ("heldout.jsonl, line 2", "heldout"),
    ]


def test_the_system_prompt_of_the_recipe_stands_before_rows_without_one(renderer: Renderer) -> None:
    rows = write("rows.jsonl", talk("a", "b"), talk("c", "d", system="Own."))
    assert texts(renderer, run(renderer, train=rows, system="Be kind.")) == [
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>",
        "<|im_start|>system\nOwn.<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>",
    ]


def test_a_second_run_reads_the_cache(renderer: Renderer, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write("rows.jsonl", pair("a", "b"), pair("c", "d"))
    first = run(renderer, train=rows)
    assert len(list((own_cache / "tokens").iterdir())) == 1
    monkeypatch.delattr(Renderer, "examples_of_all")
    assert run(renderer, train=rows).train == first.train


# ---------------------------------------------------------------- too long


def test_a_question_is_cut_from_the_left_as_little_as_need_be(renderer: Renderer) -> None:
    question = " ".join(f"word{number}" for number in range(40))
    rows = write("rows.jsonl", pair(question, "Spruce."))
    whole = length_of(renderer, question, "Spruce.")
    for limit in (whole - 1, whole // 2, 16):
        prepared = run(renderer, limit, train=rows, too_long="cut_prompt")
        (example,) = prepared.train
        text = renderer.tokenizer.decode(example.input_ids)
        kept = text.removeprefix("<|im_start|>user\n").removesuffix(
            "<|im_end|>\n<|im_start|>assistant\nSpruce.<|im_end|>"
        )
        assert question.endswith(kept) and kept
        one_more = question[len(question) - len(kept) - 1 :]
        assert len(example.input_ids) <= limit < length_of(renderer, one_more, "Spruce.")
        assert renderer.tokenizer.decode(example.input_ids[example.prompt_length :]) == "Spruce.<|im_end|>"
        assert example.cut
        assert lines(prepared) == [
            ("rows.jsonl, line 1", "used, cut", f"prompt cut to {limit} tokens", f"{whole} tokens")
        ]
        assert prepared.ledger.counts()["cut"] == prepared.ledger.counts()["used"] == 1


def test_earlier_exchanges_go_first_and_the_system_prompt_stays(renderer: Renderer) -> None:
    rows = write("rows.jsonl", talk("a" * 40, "b", "c", "d", "e", "f", system="Be kind."))
    prepared = run(renderer, 50, train=rows, too_long="cut_prompt")
    assert texts(renderer, prepared) == [
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n"
        "<|im_start|>user\ne<|im_end|>\n<|im_start|>assistant\nf<|im_end|>"
    ]


def test_an_exchange_with_a_tool_goes_as_a_whole(renderer: Renderer) -> None:
    tool = {"role": "tool", "content": "t" * 40}
    answer = {"role": "assistant", "content": "c"}
    rows = write("rows.jsonl", talk("a", "b", tool, answer, {"role": "user", "content": "d"}, "e"))
    assert texts(renderer, run(renderer, 40, train=rows, too_long="cut_prompt")) == [
        "<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\ne<|im_end|>"
    ]


def test_where_the_answer_alone_is_too_long_the_row_is_dropped(renderer: Renderer) -> None:
    answer = "Cremona. " * 30
    rows = write("rows.jsonl", talk("a", "b"), talk("Where do you live?", answer), talk("a", "b", "c", answer))
    limit = length_of(renderer, "", answer)  # it would fit if nothing at all were asked
    whole, talked = length_of(renderer, "Where do you live?", answer), length_of(renderer, "c", answer)
    talked += length_of(renderer, "a", "b") + 1  # the line break behind an answer
    why = f"longer than {limit} tokens, and no question fits before its answer"
    prepared = run(renderer, limit, train=rows, too_long="cut_prompt")
    assert lines(prepared) == [
        ("rows.jsonl, line 2", "dropped", why, f"{whole} tokens"),
        ("rows.jsonl, line 3", "dropped", why, f"{talked} tokens"),
    ]


def test_a_held_out_row_is_cut_too(renderer: Renderer) -> None:
    rows, heldout = write("rows.jsonl", pair("a", "b")), write("heldout.jsonl", pair("What wood? " * 20, "Spruce."))
    prepared = run(renderer, 20, train=rows, heldout=heldout, too_long="cut_prompt")
    assert [(place, outcome) for place, outcome, _, _ in lines(prepared)] == [("heldout.jsonl, line 1", "heldout, cut")]
    assert len(prepared.heldout[0][0].input_ids) <= 20


def test_plain_text_is_cut_into_pieces_that_lose_no_label(renderer: Renderer) -> None:
    text = "The best wood is spruce for the top and maple for the back. " * 3
    rows = write("rows.jsonl", {"text": text})
    (whole,) = run(renderer, train=rows).train
    for limit in (2, 7, len(whole.input_ids) - 1):
        pieces = run(renderer, limit, train=rows, too_long="cut_prompt").train
        assert all(1 < len(piece.input_ids) <= limit for piece in pieces)
        assert [token for piece in pieces for token in piece.input_ids[1:]] == whole.input_ids[1:]
        assert sum(piece.num_labels for piece in pieces) == whole.num_labels
        assert pieces[-1].input_ids[-1] == renderer.end_of_turn_id


def test_rows_that_are_too_long_are_all_named(renderer: Renderer) -> None:
    rows = write("rows.jsonl", pair("a", "b"), *(pair(f"{number}", "b" * 60) for number in range(2)))
    length = length_of(renderer, "0", "b" * 60)
    with pytest.raises(DataError) as raised:
        run(renderer, 32, train=rows, too_long="error")
    fix = "raise data.max_length, shorten the row, or set data.too_long: drop or cut_prompt"
    assert raised.value.problems == (
        Problem(f"{Path('rows.jsonl').absolute()}, line 2", f"longer than 32 tokens ({length})", fix),
        Problem(f"{Path('rows.jsonl').absolute()}, line 3", f"longer than 32 tokens ({length})", fix),
    )


def test_of_very_many_rows_twenty_are_named(renderer: Renderer) -> None:
    rows = write("rows.jsonl", *(pair(f"{number}", "b" * 60) for number in range(23)))
    with pytest.raises(DataError) as raised:
        run(renderer, 32, train=rows, too_long="error")
    assert len(raised.value.problems) == 21
    assert raised.value.problems[-1] == Problem("and", "3 more rows are too long", "the same")


# ---------------------------------------------------------------- what cannot be trained


def test_problems_of_all_files_at_once(renderer: Renderer) -> None:
    first = write("first.jsonl", pair("a", ""))
    second = write("second.jsonl", {"prompt": "a"}, pair("a", "b"))
    with pytest.raises(DataError) as raised:
        run(renderer, train=[first, second])
    assert [(Path(problem.where).name, problem.what) for problem in raised.value.problems] == [
        ("first.jsonl, line 1", "`completion` is empty"),
        ("second.jsonl, line 1", "has no `completion`"),
    ]


def test_nothing_left_to_train_on(renderer: Renderer) -> None:
    rows = write("rows.jsonl", pair("a", "b" * 60), pair("c", "d" * 60))
    with pytest.raises(DataError) as raised:
        run(renderer, 32, train=rows)
    assert raised.value.problems == (
        Problem(
            "rows.jsonl",
            "no row is left to train on (2 of 2: longer than 32 tokens)",
            "raise data.max_length, or set data.too_long: cut_prompt; line 1 has 70 tokens",
        ),
    )


def test_how_long_a_sequence_may_be() -> None:
    auto, asked = DataSettings(train="d"), DataSettings(train="d", max_length=512)
    assert pick_max_length(auto, 2048) == Choice(2048, "the model takes no more")
    longer = "longer rows need data.max_length, as memory grows with them"
    assert pick_max_length(auto, 32768) == pick_max_length(auto, None) == Choice(4096, longer)
    assert pick_max_length(asked, 512) == pick_max_length(asked, None) == Choice(512, "the recipe asks for it")
    with pytest.raises(DataError) as raised:
        pick_max_length(asked, 256)
    assert raised.value.problems == (
        Problem("data.max_length", "512 tokens, and the model takes 256", "set it to 256 or less"),
    )
