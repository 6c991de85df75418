"""What is trained is what is asked: checked on the rows of each run, not only in tests.

The tokens may come from a cache, and rows may have been cut: here they are compared with what chat, evaluation and any
server would send for the same conversation.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data.conversation import Conversation
from luthier.data.render import IGNORE, Example, Renderer, TrainOn
from luthier.errors import CheckFailed, Problem

SAMPLES = 8  # rows, spread over all


def check(renderer: Renderer, rows: Sequence[tuple[Conversation, list[Example]]], train_on: TrainOn) -> int:
    """How many prompts were compared. Raises CheckFailed for a turn that is not trained as it would be asked.

    Every row: the end-of-turn token is labelled where it ends. A few: each turn's prompt is the served one.
    """
    chats = [(row, examples) for row, examples in rows if row.messages[0].role != "text"]
    problems = [
        Problem(str(row.source), "its end-of-turn token is not trained: the model would not learn to stop", _FIX)
        for row, examples in chats
        if any(example.labels[-1] != renderer.end_of_turn_id for example in examples)
    ]
    whole = [(row, examples) for row, examples in chats if not any(example.cut for example in examples)]
    compared = 0
    for row, examples in whole[:: max(1, len(whole) // SAMPLES)][:SAMPLES]:
        for turn in renderer.trained_turns(row, train_on):
            prompt = renderer.prompt_ids(row.messages[:turn])
            compared += 1
            if not any(_answers(example, prompt) for example in examples):
                what = f"turn {turn + 1} is not trained behind the prompt that chat would send"
                problems.append(Problem(str(row.source), what, _FIX))
    if problems:
        raise CheckFailed(*problems[:20])
    return compared


def _answers(example: Example, prompt: list[int]) -> bool:
    """Whether this sequence begins with the prompt, and is trained from there on."""
    at = len(prompt)
    if len(example.labels) <= at or example.input_ids[:at] != prompt:
        return False
    return example.labels[at - 1] == IGNORE and example.labels[at] != IGNORE


_FIX = "delete the folder `tokens` in Luthier's cache and try again; if that does not help, it is a mistake of Luthier"
