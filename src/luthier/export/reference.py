"""What the trained model says: the answers that an export is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from luthier import console
from luthier.data.conversation import Conversation, Message, Source
from luthier.data.render import Example, Renderer
from luthier.errors import InputError, Problem, RunError
from luthier.evaluation.evaluate import heldout_rows
from luthier.evaluation.rows import answer_alone
from luthier.export.runtimes import greedy, next_logprobs
from luthier.inference.opened import Opened, open_run
from luthier.report.record import RunFolder

PROMPTS = 12
POSITIONS = 64  # of each reference answer: bounds the memory that their distributions take ([64, V] float32 a prompt)
ANSWERED = 6  # prompts that are also answered freely
MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Asked:
    """One held-out prompt with its reference answer (its first POSITIONS tokens), as the run's renderer writes them."""

    where: str
    messages: tuple[Message, ...]
    prompt_ids: list[int]
    answer_ids: list[int]

    def raw(self) -> list[dict[str, str]]:
        """As OpenAI's `messages`, for a runtime's own chat path."""
        return [
            {"role": m.role, "content": m.content} | ({"reasoning_content": m.reasoning} if m.reasoning else {})
            for m in self.messages
        ]


@dataclass(frozen=True)
class Reference:
    """The trained model on each prompt: log-probabilities [P, V] at its answer's tokens, and whether it ended freely.

    `ended` and `texts` are those of the first ANSWERED prompts.
    """

    asked: list[Asked]
    logprobs: list[torch.Tensor]
    texts: list[str]
    ended: list[bool]
    renderer: Renderer
    source: str


def measure(run: RunFolder) -> Reference:
    """Base and adapter in float32 on the run's held-out prompts. Raises RunError where the run has no prompt."""
    from transformers import GenerationConfig

    opened = open_run(run, dtype="float32")
    asked, source = prompts(opened, run)
    console.say(f"The trained model on {len(asked)} {source} …")
    expected = [next_logprobs(opened.model, each.prompt_ids, each.answer_ids) for each in asked]
    stops = opened.renderer.stop_ids
    config = GenerationConfig(eos_token_id=stops, pad_token_id=opened.renderer.end_of_turn_id)
    free = [greedy(opened.model, each.prompt_ids, config, MAX_NEW_TOKENS) for each in asked[:ANSWERED]]
    texts = [opened.renderer.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in free]
    return Reference(asked, expected, texts, [ids[-1] in stops for ids in free], opened.renderer, source)


def prompts(opened: Opened, run: RunFolder) -> tuple[list[Asked], str]:
    """Held-out rows spread over all of them; where they cannot be read any more, the prompts of run.json."""
    try:
        data = heldout_rows(opened, run)
        pairs = list(zip(data.heldout_conversations, data.heldout, strict=True))
        source = "held-out prompts"
    except InputError as error:
        console.warn(f"the run's rows cannot be read ({error.problems[0].what}): its record's prompts are asked")
        pairs = []
    found = _spread([each for pair in pairs if (each := _asked(opened.renderer, *pair))])
    if not found:
        rows = [_recorded(answer) for answer in (run.record() or {}).get("answers", [])]
        pairs = [(row, opened.renderer.examples(row)) for row in rows if row.messages[-1].content]
        found, source = [each for pair in pairs if (each := _asked(opened.renderer, *pair))], "prompts of run.json"
    if not found:
        fix = "train with data.holdout: 5% (the default), or with `prompts:` in the recipe"
        raise RunError(Problem(str(run.path), "has no prompt that an export could be checked with", fix))
    return found, source


def _asked(renderer: Renderer, row: Conversation, examples: Sequence[Example]) -> Asked | None:
    """None for what other programs would write otherwise on purpose: a special token in a message, which is text here.

    None too for a row that was cut, and for one without a trained answer at its end.
    """
    last = answer_alone(row, examples)
    if not last or last[0].cut or any(s in m.content for m in row.messages for s in renderer.special_tokens):
        return None
    start, ids = last[0].prompt_length, last[0].input_ids
    return Asked(str(row.source), row.prompt, ids[:start], ids[start : start + POSITIONS])


def _spread(found: list[Asked]) -> list[Asked]:
    return found[:: max(1, len(found) // PROMPTS)][:PROMPTS]


def _recorded(answer: dict[str, Any]) -> Conversation:
    system = [Message("system", answer["system"])] if answer.get("system") else []
    said = answer.get("reference") or answer.get("tuned") or ""
    return Conversation(
        (*system, Message("user", answer["prompt"]), Message("assistant", said)), Source("run.json", 1, "row")
    )
