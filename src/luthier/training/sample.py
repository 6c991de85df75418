"""One question, asked at each evaluation: how its answer changes shows what the training does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from luthier import console
from luthier.data.conversation import Message
from luthier.data.render import Renderer
from luthier.engine.engines import as_stock
from luthier.engine.instance import evaluating
from luthier.inference.adapters import Adapters
from luthier.inference.decode import Decoder
from luthier.inference.generate import begin_answer
from luthier.inference.pick import pick_decoder
from luthier.report.events import Event
from luthier.training import randomness

MAX_NEW_TOKENS = 32  # enough to see whom the model takes itself for; each costs as much as some 20 tokens trained


class Sample(TrainerCallback):  # type: ignore[misc]
    """Emits the greedy answer to `prompt` after each evaluation, while `stop_asked` is False.

    An answer that fails says so once, and ends only the samples.
    """

    def __init__(
        self,
        renderer: Renderer,
        prompt: Sequence[Message],
        emit: Callable[[Event], None],
        stop_asked: Callable[[], bool],
    ) -> None:
        self.renderer, self.prompt = renderer, prompt
        self.emit, self.stop_asked = emit, stop_asked
        self._over = False
        self._decoder: Decoder | None = None  # it proves itself once: that takes a quarter of an answer

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """A decoder lays a CPU's weights side by side: now, before processes that share them are forked."""
        if state.is_world_process_zero:
            self._or_leave_out(lambda: self._pick(model))

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not self._over and state.is_world_process_zero:
            self._or_leave_out(lambda: self._emit_answer(model, state.global_step))

    def _or_leave_out(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._over = True
            reason = " ".join(str(error).split()) or type(error).__name__
            console.warn(f"sample answers failed and are left out: {reason}. The training goes on.")

    def _emit_answer(self, model: Any, step: int) -> None:
        began = time.perf_counter()
        answer, tokens = self._answer(model)
        if not self.stop_asked():
            self.emit(
                {
                    "event": "sample",
                    "step": step,
                    "prompt": self.prompt[-1].content,
                    "answer": answer,
                    "tokens": tokens,
                    "seconds": time.perf_counter() - began,
                }
            )

    def _pick(self, model: Any) -> None:
        with _as_it_will_be_asked(model):
            self._decoder = pick_decoder(Adapters(model), kept_bytes=0).value

    def _answer(self, model: Any) -> tuple[str, int]:
        if self._decoder is None:
            self._pick(model)
        assert self._decoder is not None
        with _as_it_will_be_asked(model):
            self._decoder.refresh()
            return begin_answer(
                self._decoder,
                model.active_adapter,
                self.renderer,
                self.prompt,
                max_new_tokens=MAX_NEW_TOKENS,
                given_up=self.stop_asked,
            )


@contextlib.contextmanager
def _as_it_will_be_asked(model: Any) -> Iterator[None]:
    """The stock model; then model and random numbers are as the training left them."""
    restore = randomness.snapshot()
    try:
        with as_stock(model), evaluating(model), torch.no_grad():
            yield
    finally:
        restore()
