"""Every kind of secret is found, none that is not one, and none is ever shown whole.

The secrets are put together here, so that no scanner takes this file for a leak.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.look.private import CONTACTS, SECRETS, Hit, hits, masked, replaced

SOME = "aB3d"
FOUND = [
    ("sk-" + SOME * 8, "API key"),
    ("sk-proj-" + SOME * 8, "API key"),
    ("AI" + "za" + SOME * 8 + "xyz", "API key"),
    ("rk_" + "live_" + SOME * 6, "API key"),
    ("AK" + "IA" + "A1B2" * 4, "cloud access key"),
    ("LT" + "AI" + SOME * 5, "cloud access key"),
    ("AK" + "ID" + SOME * 8, "cloud access key"),
    ("gh" + "p_" + SOME * 9, "access token"),
    ("github" + "_pat_" + SOME * 9, "access token"),
    ("gl" + "pat-" + SOME * 5, "access token"),
    ("hf" + "_" + SOME * 9, "access token"),
    ("xo" + "xb-" + "12345-" * 3 + SOME, "access token"),
    (".".join(["ey" + "J" + SOME * 3] * 2 + [SOME * 3]), "access token"),
    ("-----BEGIN RSA PRIV" + "ATE KEY-----\nabc\ndef\n-----END RSA PRIV" + "ATE KEY-----", "private key"),
    ("-----BEGIN PRIV" + "ATE KEY-----\nabc, and then the row ends", "private key"),
    ("zhen.huan@gong.example.cn", "e-mail address"),
    ("13800138000", "phone number"),
    ("138-0013-8000", "phone number"),
    ("+86 13800138000", "phone number"),
    ("+49 30 1234 5678", "phone number"),
    ("11010519491231002X", "identity number"),
]


@pytest.mark.parametrize(("secret", "kind"), FOUND)
def test_what_is_found(secret: str, kind: str) -> None:
    """Also without a space before or behind it, as in Chinese."""
    text = f"用这个：{secret}。" if secret[0] != "-" else f"用这个：{secret}"
    assert hits(text) == [Hit(kind, 4, 4 + len(secret))]
    assert masked(text) == text.replace(secret, f"{secret[:3]}…")
    assert replaced(text) == (text.replace(secret, f"[{kind}]"), [kind])
    patterns = CONTACTS if kind in {"e-mail address", "phone number", "identity number"} else SECRETS
    assert hits(text, patterns) == hits(text)


@pytest.mark.parametrize(
    ("before", "password", "after"),
    [
        ("password = ", "hunter2abc", ""),
        ("API_KEY: '", "x9y8z7w6v5", "'"),
        ("密码是", "abc12345", "。"),
        ("postgres://", "me:p4ss", "@host/db"),
    ],
)
def test_only_the_password_is_masked(before: str, password: str, after: str) -> None:
    text = before + password + after
    assert hits(text) == [Hit("password", len(before), len(before + password))]
    assert replaced(text) == (f"{before}[password]{after}", ["password"])


@pytest.mark.parametrize(
    "text",
    [
        "someone@example.com",  # set aside for examples
        "3.13800138000 is a decimal",
        "order 9138001380001",
        "110105194912310021",  # its last sign does not follow from the others
        "password: your own",
        "the password is long",
        "sk-learn is a library",
        "a ratio of 12:30 @ noon",
        "ask-" + SOME * 8,
        "sk-a-very-long-name-with-many-hyphens",
        "+1 point",
        "",
    ],
)
def test_what_is_none(text: str) -> None:
    assert hits(text) == []
    assert (masked(text), replaced(text)) == (text, (text, []))


def test_several_in_one_text_stay_in_their_order() -> None:
    text = "a@b.cn or 13800138000; key = sk-" + SOME * 8
    assert [hit.kind for hit in hits(text)] == ["e-mail address", "phone number", "API key"]
    assert masked(text) == "a@b… or 138…; key = sk-…"


PIECES = st.sampled_from(
    [*(secret for secret, _ in FOUND), "password: ", "密码是", "://", "@", "x9y8z7w6v5", "1", "a", ".", "-"]
)


@given(st.lists(st.tuples(PIECES, st.sampled_from(["", " ", "，", "\n", "'"]))))
def test_what_was_replaced_is_not_found_again(parts: list[tuple[str, str]]) -> None:
    """However they stand together: else a cleaned file would never be clean."""
    text = "".join(piece + between for piece, between in parts)
    assert hits(replaced(text)[0]) == hits(masked(text)) == []


def test_long_texts_take_no_time_to_speak_of() -> None:
    """Each of these would take hours if a pattern went back over it again and again."""
    for run in ("a", "a-", "a.", "1", "1 ", "sk-", "eyJ", "a@", "+1 ", "key: a1", "-----BEGIN PRIV" + "ATE KEY-----"):
        hits(run * 20_000)
