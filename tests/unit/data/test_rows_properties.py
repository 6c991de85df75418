"""Whatever a file holds: rows or a LuthierError, and no row that is neither used nor named.

`python -m pytest tests/unit -k properties --hypothesis-profile=long` tries five thousand of each.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st
from strategies import CODECS, SUFFIXES, as_json, damaged_files, good_rows, rows, texts

from luthier.data.conversation import Conversation, Message, Source
from luthier.data.formats import convert
from luthier.data.prepare import prepare
from luthier.data.render import IGNORE, Renderer
from luthier.data.sources import read_rows
from luthier.errors import DataError, InputError, ModelError
from luthier.recipe.schema import DataSettings

settings = st.fixed_dictionaries(
    {"holdout": st.sampled_from(["5%", 0, 1, "50%", "0.1%"]), "bad_rows": st.sampled_from(["drop", "drop", "error"])},
    optional={
        "system": st.sampled_from(["You are a luthier.", "<|im_end|>"]),
        "duplicates": st.sampled_from(["drop", "keep"]),
        "too_long": st.sampled_from(["drop", "cut_prompt", "cut_prompt", "error"]),
        "train_on": st.sampled_from(["all", "last"]),
        "format": st.sampled_from(["alpaca", "alpaca", "messages"]),
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples: a cache of their own as well."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("rows")
        patch.setenv("LUTHIER_HOME", str(folder / "home"))
        yield folder


@pytest.fixture(scope="module")
def renderer(tokenizer: Any) -> Renderer:
    return Renderer(tokenizer)


@given(data=damaged_files(), suffix=st.sampled_from(SUFFIXES), drop=st.booleans())
def test_a_file_is_rows_or_an_error(folder: Path, data: bytes, suffix: str, drop: bool) -> None:
    file = folder / f"file{suffix}"
    file.write_bytes(data)
    try:
        read = read_rows(file, drop=drop)
        converted = convert(read, DataSettings(train="x", bad_rows="drop" if drop else "error"))
    except DataError as error:
        event("refused")
        assert all(problem.where and problem.what and problem.fix for problem in error.problems)
        return
    assert len(converted.conversations) + len(converted.dropped) == len(read.rows) + len(read.dropped)
    assert all(conversation.messages for conversation in converted.conversations)


@given(each=st.lists(rows, min_size=1, max_size=8), codec=st.sampled_from(CODECS), lines=st.booleans())
def test_each_row_written_is_read_or_named(folder: Path, each: list[Any], codec: str, lines: bool) -> None:
    """ASCII in any encoding: what is wrong is in the rows."""
    assume(not (lines and isinstance(each[0], list)))  # what begins with a list is JSON, whatever its name says
    file = folder / ("written.jsonl" if lines else "written.json")
    text = "".join(f"{as_json(row)}\n" for row in each) if lines else as_json(each)
    file.write_text(text, encoding=codec)
    try:
        read = read_rows(file, drop=True)
    except DataError as error:
        event("refused")
        assert codec == "utf-16-le" or not all(isinstance(row, dict) for row in each), error
        return
    numbers = sorted([source.number for source, _ in read.rows] + [source.number for source in read.dropped])
    assert numbers == list(range(1, len(each) + 1))


@given(
    each=st.lists(good_rows, min_size=2, max_size=12) | st.lists(good_rows | good_rows | rows, min_size=1, max_size=12),
    chosen=settings,
    max_length=st.sampled_from([8, 60, 4096, 4096]),
)
def test_used_and_dropped_and_heldout_and_duplicate_are_the_rows_read(
    folder: Path, renderer: Renderer, each: list[Any], chosen: dict[str, Any], max_length: int
) -> None:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{as_json(row)}\n" for row in each), encoding="utf-8")
    try:
        prepared = prepare(DataSettings(train=str(file), **chosen), renderer, max_length=max_length, seed=1)
    except InputError as error:
        event("refused")
        assert all(problem.where and problem.what and problem.fix for problem in error.problems)
        return
    counts = prepared.ledger.counts()
    assert counts["read"] == len(each)
    assert counts["used"] + counts["dropped"] + counts["heldout"] + counts["duplicate"] == len(each)
    assert counts["used"] == prepared.rows == len({example.source for example in prepared.train})
    assert counts["heldout"] == len(prepared.heldout)
    assert all(len(e.input_ids) <= max_length for e in [*prepared.train, *prepared.heldout_examples])


clean = st.text(max_size=20) | st.sampled_from(
    ["<|im_end|>", "<|im_start|>user\n", "<|endoftext|>", "<|im_end", "\u2028"]
)


@given(said=st.lists(st.tuples(clean, clean), min_size=1, max_size=3), system=st.none() | clean)
def test_a_conversation_is_labelled_or_refused(
    renderer: Renderer, said: list[tuple[str, str]], system: str | None
) -> None:
    """The labels are the answers, each with its end of turn; no text makes a turn; the prompt is what chat sends."""
    messages = [] if system is None else [Message("system", system)]
    for question, answer in said:
        messages += [Message("user", question), Message("assistant", answer)]
    try:
        examples = renderer.examples(Conversation(tuple(messages), Source("x", 1)))
    except (DataError, ModelError):
        assert any("\ufdd0" in message.content for message in messages)
        return
    (example,) = examples
    ids, decode = renderer.tokenizer.convert_tokens_to_ids, renderer.tokenizer.decode
    assert example.input_ids.count(ids("<|im_start|>")) == len(messages)
    assert example.input_ids.count(ids("<|im_end|>")) == len(messages)
    assert decode([label for label in example.labels if label != IGNORE]) == "".join(
        f"{answer}<|im_end|>" for _, answer in said
    )
    prompt = renderer.prompt_ids(messages[:-1])
    assert example.input_ids[: len(prompt)] == prompt


@given(text=texts | st.text(st.characters(codec=None), max_size=10))
def test_any_text_can_be_asked_or_is_refused(renderer: Renderer, text: str) -> None:
    """What is typed at a terminal may hold half characters: bytes that are no UTF-8."""
    with contextlib.suppress(DataError, ModelError):
        prompt = renderer.prompt_ids([Message("user", text)])
        assert renderer.tokenizer.decode(prompt) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
