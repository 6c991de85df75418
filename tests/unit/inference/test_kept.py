"""What is kept of earlier requests: found by its first tokens, there once, within its limit."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from luthier.inference import kept
from luthier.inference.kept import BLOCK, Kept, Shape

SHAPE = Shape(layers=2, heads=1, key_width=3, value_width=2, dtype=torch.float32, device=torch.device("cpu"))
BLOCK_BYTES = BLOCK * 2 * (3 + 2) * 4


def tokens(count: int, first: int = 0) -> list[int]:
    return list(range(first, first + count))


def of(ids: list[int], *, begin: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values that depend on a token, its place, layer and width alone."""
    place = torch.arange(begin, begin + len(ids), dtype=torch.float32)
    marks = torch.tensor(ids, dtype=torch.float32) * 1000 + place
    made = [marks[None, :, None, None] + 0.1 * torch.arange(2)[:, None, None, None] for _ in range(2)]
    return made[0].expand(-1, -1, 1, 3) + 0.25, made[1].expand(-1, -1, 1, 2)


def keep(kept: Kept, ids: list[int], adapter: str | None = None) -> None:
    kept.keep(adapter, ids, *of(ids))


def found(kept: Kept, ids: list[int], adapter: str | None = None) -> int:
    """How many first tokens were found; their keys and values are what was kept."""
    at = 0
    for node, count in kept.find(adapter, ids):
        keys, values = of(ids[at : at + count], begin=at)
        assert torch.equal(node.keys[:, :count], keys)
        assert torch.equal(node.values[:, :count], values)
        at += count
    return at


def lengths(kept: Kept) -> list[int]:
    """Tokens of each block, the one not used for longest first."""
    return [len(node.ids) for node in kept.nodes]


def test_what_ids_begin_with_is_found_to_the_token_and_never_all_of_it() -> None:
    there = Kept(SHAPE, 100 * BLOCK_BYTES)
    assert found(there, tokens(40)) == 0
    keep(there, tokens(40))
    assert found(there, tokens(40)) == 39
    assert found(there, tokens(50)) == 40
    assert found(there, tokens(20)) == 19
    assert found(there, [*tokens(37), 99, 99]) == 37
    assert found(there, [*tokens(5), 99]) == 5
    assert found(there, [99, *tokens(40)]) == 0
    assert found(there, [0]) == 0


def test_what_requests_begin_with_is_there_once() -> None:
    there = Kept(SHAPE, 100 * BLOCK_BYTES)
    system = tokens(2 * BLOCK)
    for question in range(5):
        keep(there, [*system, *tokens(10, first=1000 * (1 + question))])
    assert len(there.nodes) == 2 + 5
    assert [found(there, [*system, *tokens(20, first=1000 * (1 + q))]) for q in range(5)] == [2 * BLOCK + 10] * 5
    keep(there, system)
    keep(there, [*system, 3000, 3001])
    assert len(there.nodes) == 2 + 5


def test_what_goes_on_fills_its_block_first() -> None:
    there = Kept(SHAPE, 100 * BLOCK_BYTES)
    keep(there, tokens(5))
    keep(there, tokens(BLOCK + 3))
    assert lengths(there) == [3, BLOCK]
    keep(there, tokens(BLOCK + 9))
    assert lengths(there) == [9, BLOCK]
    assert found(there, tokens(99)) == BLOCK + 9


def test_of_those_that_part_within_a_block_the_likest_is_found() -> None:
    there = Kept(SHAPE, 100 * BLOCK_BYTES)
    keep(there, [*tokens(4), 50, 51, *tokens(BLOCK)])
    keep(there, [*tokens(8), 60])
    assert lengths(there) == [6, BLOCK, 9]
    assert found(there, [*tokens(4), 50, 99]) == 5
    assert found(there, [*tokens(7), 99]) == 7


def test_adapters_have_nothing_in_common() -> None:
    there = Kept(SHAPE, 100 * BLOCK_BYTES)
    keep(there, tokens(20))
    keep(there, tokens(30), "one")
    assert [found(there, tokens(40), adapter) for adapter in (None, "one", "two")] == [20, 30, 0]
    there.forget("one")
    assert [found(there, tokens(40), adapter) for adapter in (None, "one", "two")] == [20, 0, 0]
    assert lengths(there) == [4, BLOCK]
    there.forget("two")


def test_the_end_of_what_was_not_used_for_longest_goes_first() -> None:
    there = Kept(SHAPE, 6 * BLOCK_BYTES)
    a, b = tokens(3 * BLOCK), tokens(3 * BLOCK, first=1000)
    keep(there, a)
    keep(there, b)
    assert there.bytes == 6 * BLOCK_BYTES
    keep(there, tokens(BLOCK, first=2000))
    assert (found(there, [*b, 0]), found(there, [*a, 0])) == (3 * BLOCK, 2 * BLOCK)
    keep(there, tokens(2 * BLOCK, first=3000))  # in place of the one of 2000, and of the last of b
    assert [found(there, [*ids, 0]) for ids in (a, b, tokens(9, first=2000))] == [2 * BLOCK, 2 * BLOCK, 0]
    assert there.bytes == 6 * BLOCK_BYTES


def test_what_is_longer_than_the_limit_is_kept_as_far_as_it_goes() -> None:
    there = Kept(SHAPE, 2 * BLOCK_BYTES + 1)
    keep(there, tokens(10, first=1000))
    keep(there, tokens(3 * BLOCK))
    assert (found(there, tokens(99)), found(there, tokens(9, first=1000))) == (2 * BLOCK, 0)
    nothing = Kept(SHAPE, BLOCK_BYTES - 1)
    keep(nothing, tokens(5))
    assert (found(nothing, tokens(9)), nothing.bytes) == (0, 0)


def test_memory_is_taken_in_pieces_and_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "PIECE", 3 * BLOCK_BYTES - 1)
    there = Kept(SHAPE, 7 * BLOCK_BYTES)
    taken = []
    for first in range(0, 9000, 1000):
        keep(there, tokens(BLOCK, first=first))
        taken.append(there.bytes // BLOCK_BYTES)
    assert taken == [3, 3, 3, 6, 6, 6, 7, 7, 7]
    there.forget(None)
    keep(there, tokens(7 * BLOCK))
    assert (there.bytes, len(there.nodes)) == (7 * BLOCK_BYTES, 7)


def test_whatever_comes_what_is_found_is_right_and_the_limit_holds() -> None:
    """Against the list of all that was kept, of which it may hold a part."""
    dice = random.Random(0)
    there, all_kept = Kept(SHAPE, 9 * BLOCK_BYTES), []
    for _ in range(1000):
        old = dice.choice(all_kept) if all_kept else []
        ids = [*old[: dice.randrange(60)], *(dice.randrange(3) for _ in range(dice.randrange(1, 40)))]
        longest = max((common(ids[:-1], each) for each in all_kept), default=0)
        assert found(there, ids) <= longest
        keep(there, ids)
        all_kept.append(ids)
        assert found(there, [*ids, 99]) == min(len(ids), 9 * BLOCK)
        held = [(node.keys.data_ptr(), id(node.siblings[node.ids]) == id(node)) for node in there.nodes]
        assert len({block for block, _ in held}) == len(held) <= 9
        assert all(lies for _, lies in held)
        assert there.bytes == 9 * BLOCK_BYTES


def common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
