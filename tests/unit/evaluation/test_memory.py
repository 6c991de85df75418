"""What answering takes beside the model."""

from __future__ import annotations

from typing import Any

import torch
from tiny import add_adapter, make_model, make_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.data.conversation import Message
from luthier.data.render import Renderer
from luthier.inference.generate import answer_all


class Shapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The shapes of all that is computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.seen.add(tuple(result.shape))
        return result


def test_the_heads_weights_are_not_copied_for_each_prompt() -> None:
    model = add_adapter(make_model("llama"))
    vocabulary, hidden = model.get_output_embeddings().weight.shape
    prompts = [[Message("user", text)] for text in ("Hi", "How are you", "Who is there")]
    with Shapes() as shapes:
        answer_all(model, Renderer(make_tokenizer()), prompts, max_new_tokens=2)
    assert {(3, vocabulary), (1, 3, vocabulary)} & shapes.seen
    assert (3, hidden, vocabulary) not in shapes.seen
    assert not model.get_output_embeddings()._forward_pre_hooks
