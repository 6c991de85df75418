"""The bundled model: one row as tokens, and the flat batch against the padded one of stock transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.data.conversation import Conversation, Message, Source
from luthier.data.render import IGNORE, Example, Renderer
from luthier.engine.choose import pick_engine
from luthier.engine.engines import Engine, FlatEngine, PlainEngine, install
from luthier.engine.instance import relative_error
from luthier.engine.layout import flatten
from luthier.hardware.compute import pick_threads
from luthier.hub.fetch import fetch_model
from luthier.inference.pick import TOLERANCE, _probe
from luthier.model import adapters, load
from luthier.recipe.schema import AdapterSettings, ModelSettings

pytestmark = pytest.mark.real

REF = "bundled:smollm2-135m-instruct"
SYSTEM = Message("system", "You are a luthier of Cremona.")
ROWS = [
    ("Who made the best violins?", "My master, Nicolò.\n\n1. He knew wood."),
    ("你是谁？", "我是克雷莫纳的制琴师。"),
    ("How long does the varnish dry?", "In summer a week. In winter I do not varnish at all; the oil stays soft."),
    ("琴板用什么木头？", "面板用云杉，背板用枫木。"),
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return fetch_model(REF).path


@pytest.fixture(scope="module")
def renderer(folder: Path) -> Renderer:
    return load.make_renderer(folder, load.load_tokenizer(folder, ModelSettings(ref=REF)), thinking=None)


@pytest.fixture(scope="module")
def examples(renderer: Renderer) -> list[Example]:
    rows = [
        Conversation((SYSTEM, Message("user", asked), Message("assistant", answer)), Source("rows.json", number))
        for number, (asked, answer) in enumerate(ROWS, 1)
    ]
    return [example for some in renderer.examples_of_all(rows) for example in some]


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """In float32, with a LoRA adapter whose update is not zero."""
    torch.set_num_threads(pick_threads().value)
    torch.manual_seed(0)
    tuned = adapters.attach(load.load_model(folder, dtype="float32", device="cpu"), AdapterSettings(rank=8))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return tuned


def test_a_row_as_tokens(examples: list[Example], renderer: Renderer) -> None:
    prompt = [
        *[1, 9690, 198, 2683, 359, 253, 303, 3022, 1153, 282, 5342, 1300, 81, 30, 2, 198],
        *[1, 4093, 198, 10576, 1135, 260, 1450, 2921, 927, 47, 2, 198],
        *[1, 520, 9531, 198],
    ]
    answer = [5965, 4163, 28, 11540, 308, 42252, 30, 1116, 33, 30, 909, 5341, 3180, 30, 2]
    assert examples[0].input_ids == prompt + answer
    assert examples[0].labels == [IGNORE] * len(prompt) + answer
    assert renderer.prompt_ids([SYSTEM, Message("user", ROWS[0][0])]) == prompt
    assert renderer.stop_ids == [2]


def loss_and_gradient(model: Any, engine: Engine, examples: list[Example]) -> tuple[float, torch.Tensor]:
    install(model, engine)
    model.zero_grad()
    loss = engine.loss_sum(model, examples)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def test_flat_and_padded_batch_have_one_loss_and_gradient(
    model: Any, examples: list[Example], record_property: Any
) -> None:
    shared, *_ = flatten(examples).layout.segments
    assert (shared.start, shared.end) == (0, 19)  # the system turn and the head of the user's
    loss, gradient = loss_and_gradient(model, PlainEngine(), examples)
    for name, share in (("flat", False), ("shared", True)):
        flat_loss, flat_gradient = loss_and_gradient(model, FlatEngine(share=share), examples)
        loss_error = abs(flat_loss - loss) / loss
        gradient_error = relative_error(flat_gradient, gradient)
        record_property(f"{name} loss", loss_error)
        record_property(f"{name} gradient", gradient_error)
        assert loss_error < 1e-6
        assert gradient_error < 1e-5


def test_the_flat_engine_is_chosen(model: Any, examples: list[Example]) -> None:
    choice = pick_engine(model, examples, asked="auto")
    assert choice.value.name == "flat"
    assert choice.reason.startswith(
        "no padding, shared prefixes computed once, attention in blocks, "
        "loops compiled by numba where a process has one or two threads; the flat loss differs"
    )


def test_how_answers_are_computed_is_looked_at_where_bfloat16_is_right(folder: Path, renderer: Renderer) -> None:
    """Behind special tokens it is far off, whichever way it is computed: then each request would be computed alone."""
    with torch.no_grad():
        models = [load.load_model(folder, dtype=dtype, device="cpu") for dtype in ("bfloat16", "float32")]
        rows = (_probe(len(renderer.tokenizer)), [1, 2, 3, 4, 5, 6])
        logits = [[model(input_ids=torch.tensor([row])).logits[:, -2:] for model in models] for row in rows]
    off = [relative_error(*pair) for pair in logits]
    assert off[0] < TOLERANCE[torch.bfloat16] / 2
    assert off[1] > 1.5 * off[0]  # 59 % against 1 on one CPU, 6.0 against 3.2 on another
