"""The language of a page: a dictionary of words for each, with the same keys, and what a run recorded in English."""

from __future__ import annotations

import locale
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.report.languages import en, zh, zh_recorded

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True)
class Language:
    """`words` are ours and may hold `<code>`; what is put into them is escaped."""

    code: str
    words: Mapping[str, str]
    sentences: Sequence[tuple[re.Pattern[str], str]] = ()

    def say(self, key: str, **values: Any) -> str:
        """Plain text, for a terminal or an attribute."""
        return self.words[key].format(**values)

    def html(self, key: str, **values: Any) -> Markup:
        from markupsafe import Markup

        return Markup(self.words[key]).format(**values)

    def recorded(self, text: str) -> str:
        """A sentence of the run folder (a choice's reason, a row's outcome) in this language, or as it is.

        Chinese: "repeats an earlier row (as line 4)" -> "与前面的一行重复（同第 4 行）"
        """
        for pattern, sentence in self.sentences:
            found = pattern.fullmatch(text)
            if found:
                return sentence.format(**{name: self.recorded(part) for name, part in found.groupdict().items()})
        return text


def _patterns(sentences: Mapping[str, str]) -> list[tuple[re.Pattern[str], str]]:
    """`rank {rank}` matches "rank 8"."""
    return [
        (re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(english)), re.DOTALL), other)
        for english, other in sentences.items()
    ]


ENGLISH = Language("en", en.WORDS)
LANGUAGES = {"en": ENGLISH, "zh": Language("zh-CN", zh.WORDS, _patterns(zh_recorded.SENTENCES))}


def pick(environ: Mapping[str, str] = os.environ) -> Language:
    """What LC_ALL, LC_MESSAGES or LANG say, the first that is set; where none is (Windows), the system's language."""
    said = next(filter(None, (environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))), None)
    name = said or locale.getlocale()[0] or ""
    return LANGUAGES["zh" if name.lower().startswith(("zh", "chinese")) else "en"]
