"""Conversations to tokens: the one place that renders a chat template and the only writer of labels.

Training, evaluation and chat all send a prompt through `Renderer.prompt_ids`, so what is trained is what is asked.

A label belongs to a token that the model would have to generate: what the template adds after the generation
prompt, up to and including the end-of-turn token, and not the line break that some templates put behind it.

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n   Hello!<|im_end|>   \\n
    └────────────── prompt: label -100 ──────────────────────┘ └─── trained ──┘   └ never trained
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from luthier.data.conversation import RESERVED, Conversation, Message, Source
from luthier.errors import DataError, ModelError, Problem

TrainOn = Literal["all", "last"]

IGNORE = -100
"""The label of a token that is not trained (PyTorch's `ignore_index`)."""

# Put inside a special token's text where it stands in a message, so that the tokenizer reads plain text there.
_SPLIT = RESERVED
_HALF = re.compile("[\ud800-\udfff]")  # what a terminal makes of bytes that are no UTF-8, and no tokenizer takes


@dataclass(frozen=True)
class Example:
    """One training sequence: `input_ids` [T] and `labels` [T], -100 where nothing is learned."""

    input_ids: list[int]
    labels: list[int]
    source: Source
    cut: bool = False

    @property
    def num_labels(self) -> int:
        """Labels that are learned: one on a first token (plain text) has nothing before it to predict it."""
        return sum(label != IGNORE for label in self.labels[1:])

    @property
    def prompt_length(self) -> int:
        """Tokens before the first trained one."""
        return next((i for i, label in enumerate(self.labels) if label != IGNORE), len(self.labels))


@dataclass(frozen=True)
class Turn:
    """One assistant turn as tokens: what is sent, and what the model should answer, end-of-turn token included."""

    prompt_ids: list[int]
    answer_ids: list[int]


class Renderer:
    """Turns messages into tokens with a tokenizer's chat template.

    Args:
        tokenizer: a transformers tokenizer whose `chat_template` is set.
        thinking: `enable_thinking` for templates that know it; None where the template does not.
        stop_ids: extra ids that end an answer (from the model's generation config).

    Raises:
        ModelError: the template never emits an end-of-turn token, or its prompt is not the beginning of what it
            renders with the answer, so that labels would be a guess.
    """

    def __init__(self, tokenizer: Any, *, thinking: bool | None = None, stop_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.thinking = thinking
        self._special = sorted(
            {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special} | set(tokenizer.all_special_tokens),
            key=len,
            reverse=True,
        )
        # What a model expects before a plain text: its BOS token, where the tokenizer puts one.
        self._text_start = str(tokenizer.decode([i for i in tokenizer("")["input_ids"] if i == tokenizer.bos_token_id]))
        self.end_of_turn_id = self._find_end_of_turn()
        self.stop_ids = sorted({self.end_of_turn_id, *stop_ids, *_as_list(tokenizer.eos_token_id)})

    @property
    def special_tokens(self) -> Sequence[str]:
        """What stands for something else than itself in a prompt, longest first."""
        return self._special

    # --- what is sent ---------------------------------------------------------------------------------------

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The prompt that makes the model answer `messages`, as text."""
        return self._render(messages, add_generation_prompt=True).replace(_SPLIT, "")

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt that makes the model answer `messages`, as tokens [P]: the same in training, chat and eval."""
        return self._encode(self._render(messages, add_generation_prompt=True))

    def text_ids(self, text: str) -> list[int]:
        """A plain text to be continued, as tokens, begun as in training; special tokens in it are read as such.

        Raises DataError for half a character.
        """
        if _HALF.search(text):
            raise DataError(Problem(f"text {text[:40]!r}", "holds half a character (a lone surrogate)", "write UTF-8"))
        start = "" if text.startswith(self._text_start) else self._text_start
        return [int(i) for i in self.tokenizer(start + text, add_special_tokens=False)["input_ids"]]

    # --- what is trained ------------------------------------------------------------------------------------

    def examples(self, conversation: Conversation, train_on: TrainOn = "all") -> list[Example]:
        """The training sequences of one conversation. See `examples_of_all`."""
        return self.examples_of_all([conversation], train_on)[0]

    def examples_of_all(self, conversations: Sequence[Conversation], train_on: TrainOn = "all") -> list[list[Example]]:
        """The training sequences of each conversation; all texts are encoded in one parallel call.

        Turns share one sequence where the template renders a later prompt as a continuation of the earlier text.
        Where it does not (Qwen3 drops the thinking of earlier turns), each trained turn gets a sequence of its own,
        since only that is what the model is asked when it serves.

        Raises ModelError with every turn that cannot be labelled.
        """
        problems: list[Problem] = []
        texts = [self._texts_or_problems(conversation, train_on, problems) for conversation in conversations]
        encoded = iter(self._encode_all([text for turns in texts for pair in turns for text in pair]))
        found: list[list[Example]] = []
        for conversation, turns in zip(conversations, texts, strict=True):
            examples: list[Example] = []
            for prompt, full in turns:
                ids = next(encoded), next(encoded)
                try:
                    _append(examples, self._turn(conversation.source, (prompt, full), ids), conversation.source)
                except ModelError as error:
                    problems += error.problems
            found.append(examples)
        if problems:
            more = [Problem("and", f"{len(problems) - 20} more turns", "the same")] if len(problems) > 20 else []
            raise ModelError(*problems[:20], *more)
        return found

    def _texts_or_problems(
        self, conversation: Conversation, train_on: TrainOn, problems: list[Problem]
    ) -> list[tuple[str, str]]:
        try:
            return self._texts(conversation, train_on)
        except ModelError as error:
            problems += (
                replace(problem, where=f"{problem.where}, {conversation.source}") for problem in error.problems
            )
            return []

    def _texts(self, conversation: Conversation, train_on: TrainOn) -> list[tuple[str, str]]:
        """For each trained turn: the prompt, and the text that ends with the answer."""
        messages = conversation.messages
        if messages[0].role == "text":
            end = self.tokenizer.convert_ids_to_tokens(self.end_of_turn_id)
            return [(self._text_start, self._text_start + self._guard(messages[0].content) + end)]
        return [
            (
                self._render(messages[:index], add_generation_prompt=True),
                self._render(messages[: index + 1], add_generation_prompt=False),
            )
            for index in self.trained_turns(conversation, train_on)
        ]

    def _turn(self, source: Source, texts: tuple[str, str], encoded: tuple[list[int], list[int]]) -> Turn:
        """The tokens of one turn, its labels' border checked."""
        (prompt, full), (prompt_ids, full_ids) = texts, encoded
        if not full.startswith(prompt):
            raise ModelError(_unstable(source, prompt, full, self.thinking))
        answer_ids = full_ids[len(prompt_ids) :]
        if full_ids[: len(prompt_ids)] != prompt_ids:  # the tokenizer merged across the border: serving cannot
            answer_ids = self._encode(full[len(prompt) :])
        if self.end_of_turn_id not in answer_ids:
            raise ModelError(_no_end_of_turn(str(source)))
        last = len(answer_ids) - 1 - answer_ids[::-1].index(self.end_of_turn_id)
        return Turn(prompt_ids, answer_ids[: last + 1])

    @staticmethod
    def trained_turns(conversation: Conversation, train_on: TrainOn) -> list[int]:
        """Which messages of a conversation are trained, by their place."""
        turns = [i for i, m in enumerate(conversation.messages) if m.role == "assistant"]
        chosen = turns if train_on == "all" else turns[-1:]
        return [i for i in chosen if conversation.messages[i].train]

    # --- the template -----------------------------------------------------------------------------------------

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        raw = []
        for message in messages:
            item = {"role": message.role, "content": self._guard(message.content)}
            if message.reasoning is not None:
                item["reasoning_content"] = self._guard(message.reasoning)
            raw.append(item)
        options = {} if self.thinking is None else {"enable_thinking": self.thinking}
        try:
            text = self.tokenizer.apply_chat_template(
                raw, tokenize=False, add_generation_prompt=add_generation_prompt, **options
            )
        except Exception as error:  # a template is a program: its refusal (Gemma's of a system prompt), or any mistake
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            if isinstance(error, RecursionError):  # whose text depends on where it was noticed
                reason = "it calls itself without end"
            fix = "change what it refuses, or name another template: model.chat_template: chatml"
            raise ModelError(Problem("chat template", f"cannot write this conversation: {reason}", fix)) from None
        return str(text)

    def _guard(self, content: str) -> str:
        """A special token written in a message stays text: it is split in two, and cannot forge a turn."""
        where = f"text {content[:40]!r}"
        if _SPLIT in content:
            raise DataError(Problem(where, "holds U+FDD0, which is not a character of any language", "remove it"))
        if _HALF.search(content):
            raise DataError(Problem(where, "holds half a character (a lone surrogate)", "write it as UTF-8"))
        for token in self._special:
            if token in content:
                content = content.replace(token, token[0] + _SPLIT + token[1:])
        return content

    def _encode(self, text: str) -> list[int]:
        return self._encode_all([text])[0]

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text. Its pieces around `_SPLIT` are encoded apart, so no special token forms there."""
        pieces = [text.split(_SPLIT) for text in texts]
        flat = [piece for some in pieces for piece in some]
        ids = iter(self.tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else [])
        return [[token for _ in some for token in next(ids)] for some in pieces]

    def _find_end_of_turn(self) -> int:
        """The token a template puts right behind an answer."""
        marker = "Luthier"
        full = self._render([Message("user", "Hello"), Message("assistant", marker)], add_generation_prompt=False)
        behind = self._encode(full[full.rindex(marker) + len(marker) :]) if marker in full else []
        special = set(self.tokenizer.convert_tokens_to_ids(self._special))
        found = next((i for i in behind if i in special), None)
        if found is None:
            raise ModelError(_no_end_of_turn("chat template"))
        return found


def _append(examples: list[Example], turn: Turn, source: Source) -> None:
    """Adds a turn, as the continuation of the sequence before it where its prompt is one."""
    ids = turn.prompt_ids + turn.answer_ids
    labels = [IGNORE] * len(turn.prompt_ids) + turn.answer_ids
    previous = examples[-1] if examples else None
    if previous is not None and ids[: len(previous.input_ids)] == previous.input_ids:
        labels[: len(previous.labels)] = previous.labels
        examples.pop()
    examples.append(Example(ids, labels, source))


def _unstable(source: Source, prompt: str, full: str, thinking: bool | None) -> Problem:
    same = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), min(len(prompt), len(full)))
    switch = "" if thinking is None else f"set model.thinking: {str(not thinking).lower()}, or "
    return Problem(
        f"chat template, {source}",
        f"the prompt goes on with {prompt[same : same + 40]!r} and the text with the answer with "
        f"{full[same : same + 40]!r}, so which tokens to train would be a guess",
        f"{switch}name another template: model.chat_template: chatml",
    )


def _no_end_of_turn(where: str) -> Problem:
    return Problem(
        where,
        "the template puts no end-of-turn token behind an answer: the model would never learn to stop",
        "name a template that does: model.chat_template: chatml, or a Jinja file that ends each answer with eos_token",
    )


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
