"""Conversations to tokens, kept on disk by content: the same rows, template and settings are not rendered twice."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier import console
from luthier.data.conversation import Conversation
from luthier.data.render import IGNORE, Example, Renderer, TrainOn

CHUNK = 2000  # conversations rendered at once: enough for a parallel call, few enough for a live progress bar
PART = 20_000  # conversations whose tokens are held, and kept in one file


def tokenize(
    renderer: Renderer, conversations: Iterable[Conversation], count: int, train_on: TrainOn, cache: Path | None
) -> Iterator[tuple[list[Conversation], list[list[Example]]]]:
    """`count` conversations, and the examples of each, in parts of at most PART, from `cache` where it holds them.

    Raises ModelError for turns without labels.
    """
    with contextlib.ExitStack() as shown:
        bar: console.Progress | None = None
        rows, left = iter(conversations), count
        while part := list(itertools.islice(rows, PART)):
            file = cache / f"{_key(renderer, part, train_on)}.npz" if cache else None
            kept = _read(file, part) if file else None
            if kept is None:
                bar = bar or shown.enter_context(console.progress("Rendering rows", left))
                kept = []
                for at in range(0, len(part), CHUNK):
                    kept += renderer.examples_of_all(part[at : at + CHUNK], train_on)
                    bar.advance(len(part[at : at + CHUNK]))
                if file:
                    _keep(file, kept)
            elif bar:
                bar.advance(len(part))
            left -= len(part)
            yield part, kept


def _keep(file: Path, found: list[list[Example]]) -> None:
    try:
        _write(file, found)
    except OSError as error:
        reason = error.strerror or error
        console.warn(f"{file.parent} cannot be written ({reason}): the next run has to render these rows again")


def _key(renderer: Renderer, conversations: Sequence[Conversation], train_on: TrainOn) -> str:
    """Hash of everything that tokens and labels depend on."""
    digest = hashlib.sha256()
    tokenizer = renderer.tokenizer
    template = (tokenizer.chat_template, tokenizer.special_tokens_map)  # it may write eos_token
    for part in ("1", tokenizer.backend_tokenizer.to_str(), *template, renderer.thinking, train_on):
        digest.update(json.dumps(part).encode())
    for conversation in conversations:
        messages = [(m.role, m.content, m.train, m.reasoning) for m in conversation.messages]
        digest.update(json.dumps(messages, separators=(",", ":")).encode())
    return digest.hexdigest()


def _write(file: Path, found: list[list[Example]]) -> None:
    flat = [example for some in found for example in some]
    arrays: dict[str, Any] = {
        "per_row": np.array([len(some) for some in found], dtype=np.int32),
        "lengths": np.array([len(example.input_ids) for example in flat], dtype=np.int32),
        "input_ids": np.array([i for example in flat for i in example.input_ids], dtype=np.int32),
        "trained": np.array([label != IGNORE for example in flat for label in example.labels], dtype=np.bool_),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as handle:
        np.savez(handle, **arrays)
    temporary.replace(file)


def _read(file: Path, conversations: Sequence[Conversation]) -> list[list[Example]] | None:
    """What was kept, or None where nothing is, or where the file was damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            per_row, lengths = arrays["per_row"].tolist(), arrays["lengths"]
            borders = lengths.cumsum()[:-1]
            all_ids = np.split(arrays["input_ids"], borders)
            all_labels = np.split(np.where(arrays["trained"], arrays["input_ids"], IGNORE), borders)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    sequences = zip(all_ids, all_labels, strict=True)
    return [
        [Example(ids.tolist(), labels.tolist(), conversation.source) for ids, labels in _take(sequences, count)]
        for conversation, count in zip(conversations, per_row, strict=True)
    ]


def _take(iterator: Any, count: int) -> list[Any]:
    return [next(iterator) for _ in range(count)]
