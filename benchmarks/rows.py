"""Rows made by the benchmark, the same on every machine: the lengths of real ones, and no sense."""

from __future__ import annotations

import random
from pathlib import Path

Row = list[dict[str, str]]
"""The messages of one conversation."""

SYSTEM_ZH = "现在你要扮演皇帝身边的女人--甄嬛"
SYSTEM_EN = "You are a patient luthier. Answer from what you know of the workshop."

FOLDER = Path(__file__).parent
WORDS_EN = (FOLDER / "words.en.txt").read_text(encoding="utf-8").split()
WORDS_ZH = (FOLDER / "words.zh.txt").read_text(encoding="utf-8").split()


def english(rng: random.Random, words: int) -> str:
    """About 1.1 tokens a word, in sentences of 6 to 14."""
    text: list[str] = []
    while len(text) < words:
        sentence = rng.choices(WORDS_EN, k=min(rng.randint(6, 14), words - len(text)))
        text += [sentence[0].capitalize(), *sentence[1:]]
        text[-1] += "."
    return " ".join(text)


def chinese(rng: random.Random) -> str:
    """A line of dialogue, as long as those of huanhuan.json: half have at most 22 characters, a tenth over 61."""
    characters = min(280, max(2, round(rng.lognormvariate(3.09, 0.8))))
    text = ""
    while len(text) < characters:
        text += "".join(rng.choices(WORDS_ZH, k=rng.randint(1, 4))) + rng.choice("，，。？")
    return text[:characters] + "。"


def conversation(system: str, *turns: str) -> Row:
    """Question, answer, question, answer, …"""
    roles = ("user", "assistant")
    return [
        {"role": "system", "content": system},
        *({"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)),
    ]


def dialogue(rng: random.Random, count: int) -> list[Row]:
    return [conversation(SYSTEM_ZH, chinese(rng), chinese(rng)) for _ in range(count)]


def one_document(rng: random.Random, count: int) -> list[Row]:
    document = english(rng, 1200)
    return [
        conversation(f"{SYSTEM_EN}\n\n{document}", english(rng, rng.randint(8, 16)), english(rng, rng.randint(10, 40)))
        for _ in range(count)
    ]


def long_rows(rng: random.Random, count: int) -> list[Row]:
    return [
        conversation(SYSTEM_EN, english(rng, rng.randint(1500, 5200)), english(rng, rng.randint(400, 1200)))
        for _ in range(count)
    ]


def several_turns(rng: random.Random, count: int) -> list[Row]:
    return [
        conversation(SYSTEM_EN, *(english(rng, rng.randint(6, 40)) for _ in range(2 * rng.randint(3, 8))))
        for _ in range(count)
    ]
