"""Forked processes add what they compute to the gradients of the process that forked them."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from luthier.data.conversation import Source
from luthier.data.render import Example
from luthier.hardware.threads import with_threads
from luthier.training.workers import WorkerDied, Workers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks Linux how much memory is whose")


def row(token: int) -> Example:
    return Example([token], [token], Source("rows.json", token))


class Bench:
    """Two weights whose gradient is the sum of the rows' tokens, times the weight of the loss."""

    def __init__(self) -> None:
        self.weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.full((2, 2), 2.0))]

    def compute(self, batches: Any, weight: float | None) -> float:
        tokens = sum(example.input_ids[0] for batch in batches for example in batch)
        if weight is None:
            return float(tokens)
        loss = sum(w.sum() for w in self.weights) * tokens * weight
        loss.backward()  # type: ignore[union-attr]
        return float(loss.detach())  # type: ignore[union-attr]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def workers(bench: Bench) -> Iterator[Workers]:
    made = Workers(bench.weights, 2, 1, bench.compute)
    yield made
    made.close()


def nothing() -> None:
    """For a caller that never stops."""


def test_losses_in_order_and_gradients_added(bench: Bench, workers: Workers) -> None:
    """The weights sum up to 3 + 8 = 11; the caller has 1 row of token 1, the others 2 and 3 + 4."""
    shares = [[[row(2)]], [[row(3)], [row(4)]]]
    for _ in range(2):
        with workers.beside(shares, 0.5, nothing) as losses:
            own = bench.compute([[row(1)]], 0.5)
        assert (own, losses) == (5.5, [11.0, 38.5])
        assert [w.grad.tolist() for w in bench.weights] == [[5.0] * 3, [[5.0] * 2] * 2]  # type: ignore[union-attr]
        for weight in bench.weights:
            weight.grad = None


def test_without_a_weight_there_are_losses_alone(bench: Bench, workers: Workers) -> None:
    """Also behind a step, whose gradients still lie in the shared places; and no random number is drawn."""
    with workers.beside([[[row(2)]], [[row(3)]]], 0.5, nothing):
        pass
    gradients, state = [w.grad for w in bench.weights], torch.random.get_rng_state()
    expected = [gradient.clone() for gradient in gradients if gradient is not None]
    with workers.beside([[[row(2)]], [[row(3)], [row(4)]]], None, nothing) as losses:
        pass
    assert losses == [2.0, 7.0]
    assert [w.grad for w in bench.weights] == gradients
    assert all(map(torch.equal, gradients, expected))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_is_learned_is_seen_by_all(bench: Bench, workers: Workers) -> None:
    """An optimizer changes weights in place. With fewer shares than processes one of them rests."""
    for total, expected in ((11.0, 22.0), (111.0, 222.0)):
        with workers.beside([[[row(2)]]], 1.0, nothing) as losses:
            pass
        assert (losses, sum(w.sum().item() for w in bench.weights)) == ([expected], total)
        with torch.no_grad():
            bench.weights[1] += 25
    assert bench.weights[0].grad is not None
    assert bench.weights[0].grad.tolist() == [4.0] * 3


def test_a_weight_put_in_the_place_of_another_is_not_trained_beside_it(bench: Bench, workers: Workers) -> None:
    with workers.beside([[[row(2)]]], 1.0, nothing):
        pass
    bench.weights[0].data = torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"^a learned weight was replaced, which the processes"):  # noqa: SIM117
        with workers.beside([[[row(2)]]], 1.0, nothing):
            pass


def test_a_fault_in_a_process_comes_with_its_traceback(bench: Bench, workers: Workers) -> None:
    with pytest.raises(RuntimeError, match=r"in compute[\s\S]*TypeError: unsupported operand"):  # noqa: SIM117
        with workers.beside([[[row(2)]], [[row("?")]]], 1.0, nothing):  # type: ignore[arg-type]
            pass
    with workers.beside([[[row(2)]]], 1.0, nothing) as losses:  # those were ended; others begin
        pass
    assert losses == [22.0]


def test_too_little_memory_in_a_process(bench: Bench) -> None:
    def compute(batches: Any, weight: float) -> float:
        return float(torch.empty(1 << 60).sum())

    with pytest.raises(MemoryError, match="can't allocate memory"):  # noqa: SIM117
        with Workers(bench.weights, 1, 1, compute).beside([[[row(2)]]], 1.0, nothing):
            pass


def test_a_process_that_the_system_ends(bench: Bench) -> None:
    def compute(batches: Any, weight: float) -> float:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    with pytest.raises(WorkerDied, match=r"^a process of this run was ended from outside \(exit code -9\)$"):  # noqa: SIM117
        with Workers(bench.weights, 1, 1, compute).beside([[[row(2)]]], 1.0, nothing):
            pass


def test_a_process_that_is_gone_before_it_is_asked(bench: Bench, workers: Workers) -> None:
    with workers.beside([[[row(2)]]], 1.0, nothing):
        pass
    process, _ = workers._running[0]
    process.kill()
    process.join()
    with pytest.raises(WorkerDied, match=r"\(exit code -9\)$"):  # noqa: SIM117
        with workers.beside([[[row(2)]]], 1.0, nothing):
            pass


def test_who_waits_may_give_up(bench: Bench) -> None:
    """Signals do not reach the others: the first process decides, and they are ended with it."""

    def compute(batches: Any, weight: float) -> float:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), each)
        time.sleep(600)
        return 0.0

    def give_up() -> None:
        raise KeyboardInterrupt

    workers = Workers(bench.weights, 1, 1, compute)
    with pytest.raises(KeyboardInterrupt), workers.beside([[[row(2)]]], 1.0, give_up):
        pids = [process.pid for process, _ in workers._running]
    assert workers._running == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_memory_of_the_others_is_counted_without_what_is_shared(bench: Bench) -> None:
    """A hundred million bytes are shared here, and each of two processes takes fifty more for a while."""
    shared = torch.ones(25 * 10**6)

    def compute(batches: Any, weight: float) -> float:
        pages = mmap.mmap(-1, 50 * 10**6, flags=mmap.MAP_PRIVATE)  # new ones; malloc may give some it shares
        return float(torch.frombuffer(pages, dtype=torch.float32).fill_(1.0).sum() + shared[0])

    workers = Workers(bench.weights, 2, 1, compute)
    with workers.beside([[[row(2)]], [[row(2)]]], 1.0, nothing):
        pass
    workers.close()
    assert 99e6 < workers.peak_bytes < 160e6


def test_what_they_drop_follows_from_random_numbers_drawn_here(bench: Bench) -> None:
    def compute(batches: Any, weight: float) -> float:
        return float(torch.rand(()))

    workers = Workers(bench.weights, 2, 1, compute)
    drawn: list[list[float]] = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with workers.beside([[[row(2)]], [[row(2)]]], 1.0, nothing) as losses:
            pass
        drawn.append(losses)
    workers.close()
    assert drawn[0] == drawn[1]
    assert len({*drawn[0], *drawn[2]}) == 4


def test_several_threads_in_each(bench: Bench) -> None:
    """GNU's OpenMP hangs in a forked process whose parent has threads: they are ended before."""

    def compute(batches: Any, weight: float) -> float:
        return float((torch.ones(512, 512) @ torch.ones(512, 512)).sum()) + torch.get_num_threads()

    with with_threads(2):
        compute([], 1.0)
        workers = Workers(bench.weights, 2, 2, compute)
        with workers.beside([[[row(2)]], [[row(2)]]], 1.0, nothing) as losses:
            compute([], 1.0)
        workers.close()
    assert losses == [512.0**3 + 2] * 2
