"""Masking leaves everything else as it was: JSON stays JSON, and text without tokens stays the same text."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from luthier.secrets import masked

ADDRESSES = ("https://", "me:pw@", "h/x", "?token=", "&sig=", "abc")
PIECES = (*ADDRESSES, '"', "'", "\\", "\n", " ", "Bearer ", "hf_" + "a" * 20, "{", "<")
texts = st.lists(st.sampled_from(PIECES)).map("".join) | st.text()


@given(st.dictionaries(texts, texts | st.lists(texts)))
def test_json_stays_json_of_the_same_shape(value: dict[str, str | list[str]]) -> None:
    found = json.loads(masked(json.dumps(value)))
    assert [type(each) for each in found.values()] == [type(each) for each in value.values()] or len(found) < len(value)


@given(st.text(st.characters(exclude_characters="@=_-")))
def test_text_without_tokens_is_not_touched(text: str) -> None:
    assert masked(text) == text or "bearer" in text.lower()
