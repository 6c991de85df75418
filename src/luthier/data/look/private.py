"""Keys, passwords, addresses and numbers that belong to somebody, by their pattern.

A pattern is no proof: eleven digits may be a sum. None of them is ever shown whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Not \b: in `密钥sk-…` a letter stands on both sides of the border.
BEFORE, AFTER = r"(?<![A-Za-z0-9_])", r"(?![A-Za-z0-9_])"


@dataclass(frozen=True)
class Pattern:
    """`needles`: one of them is in every text that can match, which is quicker to see than a regular expression."""

    kind: str
    needles: tuple[str, ...]
    regex: re.Pattern[str]
    holds: Callable[[str], bool] = lambda match: True


@dataclass(frozen=True)
class Hit:
    """`text[start:end]` looks like a `kind`."""

    kind: str
    start: int
    end: int


def _word(*forms: str) -> re.Pattern[str]:
    return re.compile(f"{BEFORE}(?:{'|'.join(forms)}){AFTER}")


def _is_identity_number(text: str) -> bool:
    """The last sign of a Chinese identity number follows from the others (GB 11643)."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(weight * int(digit) for weight, digit in zip(weights, text[:17], strict=True))
    return "10X98765432"[total % 11] == text[17].upper()


_ASSIGNED = (
    r"(?i:(?:api|access|secret)[_-]?(?:key|token)|passw(?:or)?d|密码|口令|密钥)"
    r"[\"']?\s*(?:[:=：]|是|为)\s*[\"']?(?P<value>(?=[^\s\"'，。,;]*\d)(?=[^\s\"'，。,;]*[A-Za-z])(?:(?![\"',;])[!-~]){8,})"
)

SECRETS = (
    Pattern(
        "private key",
        ("PRIVATE KEY-----",),
        re.compile(
            r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----.*?(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----|\Z)", re.DOTALL
        ),
    ),
    Pattern("cloud access key", ("AKIA", "ASIA"), _word(r"(?:AKIA|ASIA)[0-9A-Z]{16}")),
    Pattern("cloud access key", ("LTAI", "AKID"), _word(r"LTAI[A-Za-z0-9]{12,30}", r"AKID[A-Za-z0-9]{28,40}")),
    Pattern("API key", ("sk-",), re.compile(r"(?<![A-Za-z0-9_-])sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,}")),
    Pattern("API key", ("AIza",), _word(r"AIza[0-9A-Za-z_-]{35}")),
    Pattern("API key", ("_live_", "_test_"), _word(r"[sr]k_(?:live|test)_[0-9a-zA-Z]{20,}")),
    Pattern(
        "access token",
        ("gh", "github_pat_", "glpat-", "hf_", "xox"),
        _word(
            r"gh[pousr]_[A-Za-z0-9]{36,}",
            r"github_pat_[A-Za-z0-9_]{30,}",
            r"glpat-[A-Za-z0-9_-]{20,}",
            r"hf_[A-Za-z0-9]{30,}",
            r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
        ),
    ),
    Pattern("access token", ("eyJ",), _word(r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}")),
    Pattern("password", ("://",), re.compile(r"(?<=://)[^\s/:@]+:[^\s/:@]+(?=@)")),
    Pattern("password", ("=", ":", "：", "是", "为"), re.compile(_ASSIGNED)),
)
"""What opens a door."""

CONTACTS = (
    Pattern(
        "e-mail address",
        ("@",),
        re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}(?![A-Za-z0-9])"),
        lambda match: not re.search(r"(?i)[@.]example(?:\.(?:com|org|net))?$", match),  # set aside for examples
    ),
    Pattern(
        "phone number",
        (),
        re.compile(r"(?<![\d.])(?:\+?86[- ]?)?1[3-9]\d(?P<gap>[- ]?)\d{4}(?P=gap)\d{4}(?![\d.]\d|\d)"),
    ),
    Pattern("phone number", ("+",), re.compile(r"(?<![\w+])\+\d{1,3}(?:[ -]\(?\d{2,4}\)?){2,4}(?!\d)")),
    Pattern(
        "identity number",
        (),
        re.compile(r"(?<!\d)[1-9]\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])\d{3}[\dXx](?!\d)"),
        _is_identity_number,
    ),
)
"""What leads to a person."""

_DIGITS = re.compile(r"\d{3}")


def hits(text: str, patterns: tuple[Pattern, ...] = (*SECRETS, *CONTACTS)) -> list[Hit]:
    """In their order, none within another."""
    found = sorted(_found(text, patterns), key=lambda hit: (hit.start, -hit.end))
    kept: list[Hit] = []
    for hit in found:
        if not kept or hit.start >= kept[-1].end:
            kept.append(hit)
    return kept


def _found(text: str, patterns: tuple[Pattern, ...]) -> Iterator[Hit]:
    digits = _DIGITS.search(text) is not None
    for pattern in patterns:
        if any(needle in text for needle in pattern.needles) if pattern.needles else digits:
            for match in pattern.regex.finditer(text):
                if pattern.holds(match[0]):
                    start, end = match.span("value") if "value" in pattern.regex.groupindex else match.span()
                    yield Hit(pattern.kind, start, end)


def masked(text: str) -> str:
    """Of each only the first three characters: `zhe…`."""
    return _rewritten(text, lambda hit, found: f"{found[:3]}…")[0]


def replaced(text: str) -> tuple[str, list[str]]:
    """Each as its kind, `[e-mail address]`, and the kinds in the order in which they were replaced."""
    return _rewritten(text, lambda hit, found: f"[{hit.kind}]")


def _rewritten(text: str, write: Callable[[Hit, str], str]) -> tuple[str, list[str]]:
    """Again until nothing is found: what stood against a key may be seen only once that is gone."""
    kinds: list[str] = []
    while found := hits(text):
        parts, at = [], 0
        for hit in found:
            parts += [text[at : hit.start], write(hit, text[hit.start : hit.end])]
            at = hit.end
        text = "".join([*parts, text[at:]])
        kinds += (hit.kind for hit in found)
    return text, kinds
