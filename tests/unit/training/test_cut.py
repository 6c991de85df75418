"""How a step is cut, which micro-batch is rehearsed, and what happens when one does not fit."""

from __future__ import annotations

import pytest
import torch

from luthier.data.conversation import Source
from luthier.data.render import IGNORE, Example
from luthier.engine.engines import FlatEngine, PlainEngine
from luthier.errors import Problem, RunError
from luthier.training.cut import SMALLER, Cut, is_out_of_memory

PLAIN = PlainEngine()


def row(length: int, labels: int, number: int = 1) -> Example:
    ids = list(range(3, 3 + length))
    return Example(ids, [IGNORE] * (length - labels) + ids[length - labels :], Source("rows.json", number))


ROWS = [row(4, 1, 1), row(9, 1, 2), row(8, 7, 3), row(8, 1, 4), row(5, 4, 5)]
STEPS = [[0, 2], [3, 4], [1]]


def numbers(batches: list[list[Example]]) -> list[list[int]]:
    return [sorted(example.source.number for example in batch) for batch in batches]


def test_the_dearest_micro_batches_are_of_most_tokens_and_of_most_labels() -> None:
    assert numbers(Cut(16).dearest(ROWS, STEPS, PLAIN)) == [[1, 3]]  # 16 tokens and 8 labels
    assert numbers(Cut(18).dearest(ROWS, STEPS, PLAIN)) == [[2, 4], [1, 3]]  # the longest two: 18 tokens, 2 labels
    assert numbers(Cut(1).dearest(ROWS, STEPS, PLAIN)) == [[2], [3]]


def test_halving_cuts_what_did_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[int] = []
    cut = Cut(1000, on_halved=told.append)
    cut.halve(ROWS, PLAIN)  # 5 rows of 9: far below the budget, which alone would have to be halved five times
    assert (cut.tokens, told) == (22, [22])
    assert numbers(cut.batches(ROWS, PLAIN)) == [[1, 5], [3, 4], [2]]
    assert capsys.readouterr().err == (
        "note: out of memory with 45 tokens at once: micro-batches of 22 tokens from here on. The steps stay the same\n"
    )


def test_halving_ends_with_each_row_alone() -> None:
    """Also where rows share a prefix, for which a micro-batch may exceed its budget."""
    shared = [Example([*range(3, 60), 100 + n], [IGNORE] * 57 + [100 + n], Source("r", n)) for n in range(4)]
    cut, engine = Cut(10), FlatEngine()
    for _ in range(10):
        largest = max(cut.batches(shared, engine), key=len)
        if len(largest) == 1:
            break
        cut.halve(largest, engine)
    assert numbers(cut.batches(shared, engine)) == [[0], [1], [2], [3]]


def test_one_row_alone_and_what_is_asked_for_are_refused() -> None:
    with pytest.raises(RunError) as caught:
        Cut(1000).halve(ROWS[1:2], PLAIN)
    what = "the memory does not hold this row alone (9 tokens)"
    assert caught.value.problems == (Problem("rows.json, row 2", what, SMALLER),)
    with pytest.raises(RunError) as caught:
        Cut(1000, asked="train.micro_batch_tokens").halve(ROWS, PLAIN)
    what = "the memory does not hold a micro-batch of 5 rows (45 tokens)"
    assert caught.value.problems == (Problem("train.micro_batch_tokens", what, f"leave it at auto, or {SMALLER}"),)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_used_up_memory_looks_like(error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) is memory


def test_each_process_has_micro_batches_of_its_own() -> None:
    """Of 34 tokens 17 each, as near as whole rows come to it."""
    engine = FlatEngine(share=False)
    cut = Cut(12, processes=2)
    first, second = cut.shares(ROWS, engine)
    assert (numbers(first), numbers(second)) == ([[1, 5], [3]], [[4], [2]])
    assert numbers(cut.batches(ROWS, engine)) == [[1, 5], [3], [4], [2]]
    assert [numbers(share) for share in cut.shares(ROWS[:1], engine)] == [[[1]]]
