from __future__ import annotations

import re
import string

import pytest

from luthier.report import languages
from luthier.report.languages import ENGLISH, LANGUAGES, en, zh, zh_recorded

CHINESE = LANGUAGES["zh"]


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_both_languages_have_the_same_keys() -> None:
    assert list(zh.WORDS) == list(en.WORDS)


@pytest.mark.parametrize("key", en.WORDS)
def test_both_languages_fill_in_the_same(key: str) -> None:
    assert fields(zh.WORDS[key]) == fields(en.WORDS[key])


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_words_hold_no_markup_but_code(language: str) -> None:
    """They are put into pages and attributes as they are."""
    rest = [re.sub("</?code>", "", text) for text in LANGUAGES[language].words.values()]
    assert [text for text in rest if re.search('[<>&"]', text)] == []


def test_what_is_filled_in_is_escaped() -> None:
    assert ENGLISH.html("not_finished", state="<b>{name}</b>") == "Not finished: &lt;b&gt;{name}&lt;/b&gt;"
    assert ENGLISH.say("not_finished", state="<b>") == "Not finished: <b>"


@pytest.mark.parametrize(("english", "chinese"), zh_recorded.SENTENCES.items())
def test_sentences_recorded_in_english_have_their_chinese(english: str, chinese: str) -> None:
    """Each is recognised by the first pattern that fits, which is its own."""
    assert fields(chinese) == fields(english)
    values = {name: f"〈{name}〉" for name in fields(english)}
    assert CHINESE.recorded(english.format(**values)) == chinese.format(**values)
    assert ENGLISH.recorded(english) == english


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("stopped at step 57", "停在第 57 步"),
        ("repeats an earlier row (as line 4)", "与前面的一行重复（同第 4 行）"),
        ("repeats an earlier row (as b.jsonl, line 4)", "与前面的一行重复（同 b.jsonl 第 4 行）"),
        ("a.jsonl, line 4; b.json, row 1,204; a.jsonl, line 9", "a.jsonl 第 4 行；b.json 第 1,204 条；a.jsonl 第 9 行"),
        ("longer than 4,096 tokens (5,120 tokens)", "超过 4,096 个 token（5,120 个）"),
        (
            "recomputing costs a third of the time, and 167 tokens at once take about 0.1 of 13.7 GB free",
            "重新计算要多花三分之一的时间，而同时计算 167 个 token 约占 13.7 GB 可用内存中的 0.1 GB",
        ),
        (
            "no padding, shared prefixes computed once, attention by flash attention, with capped scores "
            "attention by FlexAttention, norms and gated MLPs by Liger kernels; the flat loss differs from the plain "
            "one by 1.1e-03",
            "没有填充，相同的前缀只计算一次，注意力由 flash attention 计算，分数截断时由 FlexAttention 计算，"
            "归一化和门控 MLP 用 Liger 算子；与标准算法的损失相差 1.1e-03",
        ),
        (
            "no padding, shared prefixes computed once, attention by a dense mask, as FlexAttention fails "
            "(no compiler), linear attention row by row, norms by Liger kernels; "
            "the flat loss differs from the plain one by 0",
            "没有填充，相同的前缀只计算一次，注意力由 稠密掩码（FlexAttention 出错：no compiler） 计算，"
            "线性注意力逐行计算，归一化用 Liger 算子；与标准算法的损失相差 0",
        ),
        (
            "no padding, shared prefixes computed once, attention in grouped products, "
            "loops compiled by numba where a process has one or two threads; "
            "the flat loss differs from the plain one by 1.1e-03",
            "没有填充，相同的前缀只计算一次，注意力以分组乘积计算，进程只有一两个线程时，逐元素的循环由 numba 编译；"
            "与标准算法的损失相差 1.1e-03",
        ),
        (
            "no padding, shared prefixes computed once, attention in blocks, no loops compiled by numba "
            "(No module named 'numba'); the flat loss differs from the plain one by 0",
            "没有填充，相同的前缀只计算一次，注意力分块计算，逐元素的循环没有用 numba 编译（No module named "
            "'numba'）；与标准算法的损失相差 0",
        ),
        (
            "no padding, shared prefixes computed once, attention by a dense mask, as FlexAttention fails "
            "(clang: not found; no compiler); the flat loss differs from the plain one by 0",
            "没有填充，相同的前缀只计算一次，注意力由 稠密掩码（FlexAttention 出错：clang: not found；"
            "no compiler） 计算；与标准算法的损失相差 0",
        ),
        (
            "6.2 times as fast as float32 (measured on cuda: float32 4 TFLOP/s, "
            "bfloat16 fails: wrong result: relative error 1, float16 25 TFLOP/s)",
            "速度是 float32 的 6.2 倍（在 cuda 上测得：float32 4 TFLOP/s，bfloat16 出错：结果错误，相对误差为 1，"
            "float16 25 TFLOP/s）",
        ),
        ("what no pattern knows", "what no pattern knows"),
    ],
)
def test_recorded_sentences_in_chinese(english: str, chinese: str) -> None:
    assert CHINESE.recorded(english) == chinese


@pytest.mark.parametrize(
    ("environ", "code"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh-CN"),
        ({"LANG": "en_US.UTF-8"}, "en"),
        ({"LC_ALL": "zh_TW", "LANG": "en_US.UTF-8"}, "zh-CN"),
        ({"LC_ALL": "", "LC_MESSAGES": "zh_CN", "LANG": "en_US.UTF-8"}, "zh-CN"),
        ({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
    ],
)
def test_the_environment_says_which(environ: dict[str, str], code: str) -> None:
    assert languages.pick(environ).code == code


@pytest.mark.parametrize(
    ("system", "code"), [("Chinese (Simplified)_China", "zh-CN"), ("zh_CN", "zh-CN"), ("en_GB", "en"), (None, "en")]
)
def test_where_no_variable_says_it_the_system_does(
    monkeypatch: pytest.MonkeyPatch, system: str | None, code: str
) -> None:
    monkeypatch.setattr("locale.getlocale", lambda: (system, "UTF-8"))
    assert languages.pick({}).code == code
