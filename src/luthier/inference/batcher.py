"""Many answers at once from one model. Requests join and leave between tokens."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import torch

from luthier.errors import InputError, Problem
from luthier.hardware.threads import release_threads
from luthier.inference.adapters import FIRST, Adapters, adapter_folder
from luthier.inference.decode import Running
from luthier.inference.grammar import Grammar
from luthier.inference.opened import Opened
from luthier.inference.pick import pick_decoder
from luthier.inference.sample import Sampling, Token, choose, random_numbers
from luthier.model.adapters import read_card

__all__ = ["Answer", "Ask", "Batcher", "Sampling", "Token"]

T = TypeVar("T")

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Ask:
    """prompt: its tokens. model: the name of an adapter, or of the base. grammar: of this answer alone."""

    prompt: list[int]
    model: str
    sampling: Sampling = field(default_factory=Sampling)
    grammar: Grammar | None = None


class Answer(Iterator[Token]):
    """The tokens of one answer as they come, without the one that ends it. May be read and cancelled from any thread.

    A failure while generating is raised by the iteration, and by `take`.

    Attributes:
        finish: why it ended, known at the end: a stop token, its length or the model's, or `cancel`.
        cached_tokens: tokens of the prompt whose keys and values were there from an earlier request.
        done: whether nothing will come any more.
    """

    def __init__(self) -> None:
        self.finish: Finish | None = None
        self.cached_tokens = 0
        self.done = False
        self.cancelled = False
        self._failure: BaseException | None = None
        self._new: deque[Token] = deque()
        self._changed = threading.Condition()
        self._callback: Callable[[], object] | None = None

    def __next__(self) -> Token:
        with self._changed:
            while not self._new and not self.done:
                self._changed.wait(1)  # without an end, Ctrl-C would not be noticed on Windows
            if self._new:
                return self._new.popleft()
            if self._failure is not None:
                raise self._failure
            raise StopIteration

    def take(self) -> list[Token]:
        """The tokens that came since, without waiting. Look at `done` before."""
        with self._changed:
            new = list(self._new)
            self._new.clear()
            if not new and self._failure is not None:
                raise self._failure
            return new

    def cancel(self) -> None:
        """No more tokens than the one in progress."""
        self.cancelled = True

    def notify(self, callback: Callable[[], object]) -> None:
        """`callback()` is called at each new token and at the end, from the batcher's thread; at once if some came."""
        with self._changed:
            self._callback = callback
            if self._new or self.done:
                callback()

    def _put(self, token: Token) -> None:
        with self._changed:
            self._new.append(token)
            self._tell()

    def _end(self, finish: Finish | None, failure: BaseException | None = None) -> None:
        with self._changed:
            if not self.done:
                self.finish, self._failure, self.done = finish, failure, True
                self._tell()

    def _tell(self) -> None:
        self._changed.notify_all()
        if self._callback is not None:
            self._callback()


@dataclass(eq=False)
class _Request(Running):
    """What the batcher knows of a request: where its answer goes, and how many tokens it may still have."""

    sampling: Sampling = field(default_factory=Sampling)
    grammar: Grammar | None = None
    answer: Answer = field(default_factory=Answer)
    random: torch.Generator = field(default_factory=torch.Generator, repr=False)
    left: int = 0


class Batcher:
    """Answers requests, those that wait together at once. One thread owns the model.

    Args:
        opened: the model, with or without an adapter.
        max_batch: so many requests at once; others wait, first come first served.
        kept_bytes: what keys and values of earlier requests may take, for those that begin alike.
        name: of the adapter that `opened` has, its run's folder's by default.
        base: the name of the model without adapter.

    Attributes:
        way: how requests are computed, and why.
        vocabulary: how many tokens the model knows.
    """

    def __init__(
        self,
        opened: Opened,
        *,
        max_batch: int = 16,
        kept_bytes: int = 1 << 30,
        name: str | None = None,
        base: str = "base",
    ) -> None:
        self.base = base
        self.max_batch = max_batch
        self._adapters = Adapters(opened.model, opened.base.path)
        self.way = pick_decoder(self._adapters, kept_bytes=kept_bytes)
        self._decoder = self.way.value
        own = frozenset(opened.renderer.stop_ids)
        self._stop_ids: dict[str | None, frozenset[int]] = {None: own, FIRST: own}
        config = opened.model.config.get_text_config()
        self.vocabulary: int = config.vocab_size
        self._longest: float = getattr(config, "max_position_embeddings", None) or math.inf
        self._keys: dict[str, str | None] = {base: None}
        if opened.run is not None:
            self._keys[name or opened.run.path.name] = FIRST
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._jobs: deque[Callable[[], None]] = deque()
        self._leaving: set[str] = set()
        self._closed = False
        self._changed = threading.Condition()
        self._threads = torch.get_num_threads()
        release_threads()
        self._thread = threading.Thread(target=self._work, name="luthier-batcher", daemon=True)
        self._thread.start()

    # --- asked from any thread ------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The models that may be asked: the base first, then the adapters as they were added."""
        with self._changed:
            return list(self._keys)

    def add(self, name: str, folder: str | Path) -> None:
        """Puts the adapter of a run or adapter folder on the model, with the stop tokens that it was trained with.

        Raises InputError; the others stay as they are.
        """

        def job() -> None:
            if name in self._keys:
                raise InputError(Problem(name, "there is a model of this name already", "remove it first"))
            place = adapter_folder(Path(folder))
            key = self._adapters.add(place)
            with self._changed:
                self._keys[name] = key
                self._stop_ids[key] = frozenset(read_card(place).get("stop_ids", self._stop_ids[None]))

        self._do(job)

    def remove(self, name: str) -> None:
        """No more requests for this adapter; those that are there are answered. Raises InputError."""
        with self._changed:
            key = self._keys.get(name)
            if key is None:
                raise InputError(Problem(name, "is no adapter", f"name one of: {', '.join(list(self._keys)[1:])}"))
            del self._keys[name]
            self._leaving.add(key)
            self._changed.notify_all()

    def submit(self, ask: Ask) -> Answer:
        """Takes a request. Raises InputError for one that cannot be answered."""
        self._check(ask)
        with self._changed:
            if ask.model not in self._keys:
                raise InputError(Problem(ask.model, "there is no such model", f"name one of: {', '.join(self._keys)}"))
            if self._closed:
                raise InputError(Problem(ask.model, "is not answering any more", "start it again"))
            request = _Request(
                ids=list(ask.prompt),
                adapter=self._keys[ask.model],
                sampling=ask.sampling,
                grammar=ask.grammar,
                random=random_numbers(ask.sampling.seed),
                left=int(min(ask.sampling.max_new_tokens, self._longest - len(ask.prompt))),
            )
            self._waiting.append(request)
            self._changed.notify_all()
        return request.answer

    def waiting(self) -> int:
        """Requests that are not being computed yet."""
        return len(self._waiting)

    def running(self) -> int:
        """Requests that are being computed."""
        return len(self._running)

    def close(self) -> None:
        """Ends the thread after the token in progress; answers that are not done end as cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._decoder.close()

    def _check(self, ask: Ask) -> None:
        if not ask.prompt:
            raise InputError(Problem("prompt", "has no tokens", "ask something"))
        if not all(0 <= token < self.vocabulary for token in (min(ask.prompt), max(ask.prompt))):
            what = f"has a token that the model does not know: it has {self.vocabulary:,}"
            raise InputError(Problem("prompt", what, "use the model's own tokenizer"))
        if len(ask.prompt) >= self._longest:
            what = f"has {len(ask.prompt):,} tokens, and the model takes {self._longest:,} with its answer"
            raise InputError(Problem("prompt", what, "shorten it"))

    def _do(self, job: Callable[[], T]) -> T:
        """The job's result, done between two tokens by the thread that owns the model."""
        done: Future[T] = Future()

        def work() -> None:
            try:
                done.set_result(job())
            except BaseException as error:
                done.set_exception(error)

        with self._changed:
            if self._closed:
                raise InputError(Problem(self.base, "is not answering any more", "start it again"))
            self._jobs.append(work)
            self._changed.notify_all()
        return done.result()

    # --- the thread that owns the model ---------------------------------------------------------------------------

    def _work(self) -> None:
        torch.set_num_threads(self._threads)  # is each thread's own
        going = True
        while going:
            try:
                going = self._prepare()
                with torch.no_grad():
                    self._step()
            except BaseException as error:  # handed to those who wait for it; the next requests may go well
                for request in list(self._running):
                    self._finish(request, None, error)
        with self._changed:  # what came while the last jobs were done
            for request in (*self._running, *self._waiting):
                self._finish(request, "cancelled")
        for job in self._jobs:
            job()

    def _prepare(self) -> bool:
        """Waits for something to do, and does what belongs between two tokens. False: closed."""
        with self._changed:
            while not (self._closed or self._waiting or self._running or self._jobs or self._leaving):
                self._changed.wait()
            for request in [r for r in (*self._running, *self._waiting) if self._closed or r.answer.cancelled]:
                self._finish(request, "cancelled")
            jobs, self._jobs = self._jobs, deque()
            while self._waiting and len(self._running) < self.max_batch:
                self._running.append(self._waiting.popleft())
            gone = self._leaving - {r.adapter for r in (*self._running, *self._waiting)}
            self._leaving -= gone
        for job in jobs:
            job()
        for key in gone:
            self._decoder.forget(key)
            self._adapters.remove(key)
        if jobs or gone:
            self._decoder.refresh()
        return not self._closed

    def _step(self) -> None:
        """One token more for those that are that far."""
        if not self._running:
            return
        ready, logits = self._decoder.step(self._running)
        requests = [request for request in ready if isinstance(request, _Request)]
        tokens = choose(
            logits, [r.sampling for r in requests], [r.random for r in requests], [r.grammar for r in requests]
        )
        for request, token in zip(requests, tokens, strict=True):
            request.answer.cached_tokens = request.reused
            try:
                if request.grammar is not None:
                    request.grammar.take(token.id)
            except RuntimeError as error:
                self._finish(request, None, error)
                continue
            if token.id in self._stop_ids[request.adapter]:
                self._finish(request, "stop")
                continue
            request.ids.append(token.id)
            request.left -= 1
            request.answer._put(token)
            if request.left == 0:
                self._finish(request, "length")

    def _finish(self, request: _Request, finish: Finish | None, failure: BaseException | None = None) -> None:
        with self._changed:
            if request in self._running:
                self._running.remove(request)
                self._decoder.end(request, keep=failure is None)
            else:
                self._waiting.remove(request)
        request.answer._end(finish, failure)
