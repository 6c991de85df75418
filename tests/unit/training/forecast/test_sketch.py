"""What a model takes, from its config alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import FAMILIES, add_adapter, make_model
from transformers import AutoConfig

from luthier.data.conversation import Source
from luthier.data.render import IGNORE, Example
from luthier.engine.attention import key_heads
from luthier.engine.engines import FlatEngine, PlainEngine, install
from luthier.recipe.schema import AdapterSettings
from luthier.training import activations
from luthier.training.forecast.allocations import Allocations
from luthier.training.forecast.sketch import Sketch, Taken, kinds, period, shortened

ROW = Example([*range(3, 43)], [IGNORE] * 10 + [*range(13, 43)], Source("rows.json", 1))
ADAPTER = AdapterSettings(rank=4, alpha=8)
TAKEN, KEPT = 884_728, 858_524
GEMMA4 = {
    "num_hidden_layers": 10,
    "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 2,
    "num_kv_shared_layers": 5,
}


def sketch(family: str = "llama", *, dtype: str = "float32", device: str = "cpu", **changed: Any) -> Sketch:
    kind, usual = FAMILIES[family]
    engine = changed.pop("engine", "flat")
    return Sketch(
        AutoConfig.for_model(kind, **{**usual, **changed}), ADAPTER, dtype=dtype, device=device, engine=engine
    )


def test_bytes_of_tensors_that_live_at_the_same_time() -> None:
    with Allocations(wide=10) as counted:
        first = torch.empty(4, 10, device="meta")
        second = first.T + 1  # the transposed view is no memory of its own
        del first
        third = torch.empty(7, dtype=torch.bfloat16, device="meta")
        assert (counted.now, counted.peak, counted.wide_at_peak) == (160 + 14, 320, 160)
        del second, third
    assert counted.now == 0


def test_known_tensors_are_not_counted() -> None:
    weight = torch.empty(8, 8, device="meta")
    with Allocations([weight]) as counted:
        weight.add_(1)
        assert counted.peak == 0


def test_tensors_without_values_are_the_same() -> None:
    a, b = torch.empty(3, device="meta"), torch.empty(3, device="meta")
    with Allocations():
        assert torch.allclose(a, b)
        assert float((a - b).norm()) == 0
        assert bool((a == b).all())


def test_sizes_of_a_model() -> None:
    """Two layers: q, o 64 · 64, k, v 32 · 64, three of 96 · 64, two norms; embedding, head and a last norm."""
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64 + 2 * 64
    frozen = 2 * layer + 2 * 400 * 64 + 64
    learned = 2 * 4 * (2 * 128 + 2 * 96 + 3 * 160)
    assert sketch().sizes == (4 * frozen, 4 * learned, frozen + learned)
    assert sketch(dtype="bfloat16").sizes == (2 * frozen, 4 * learned, frozen + learned)
    tied = frozen - 400 * 64
    assert sketch(tie_word_embeddings=True).sizes == (4 * tied, 4 * learned, tied + learned)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "qwen2", "gpt2"])
def test_layers_keep_what_those_of_a_real_model_keep(family: str) -> None:
    model = add_adapter(make_model(family))
    engine = FlatEngine()
    install(model, engine)
    found = activations.measure(model, engine, [ROW])
    kept = sketch(family).kept_per_token([ROW]).kept
    # Which looks at 32 tokens, and not at the hidden state between two layers.
    assert kept == pytest.approx(found.kept, rel=0.12)


def test_what_a_micro_batch_takes() -> None:
    """39 of 40 tokens are needed, 30 have a label: their logits in float32, once more in the softmax."""
    taken = sketch(num_hidden_layers=8).take([ROW])
    assert taken == Taken(activations=TAKEN, logits=2 * 30 * 400 * 4, kept=KEPT)


@pytest.mark.parametrize(
    ("family", "changed", "short"),
    [
        ("llama", {"num_hidden_layers": 9}, (8,)),
        ("gemma3", {"num_hidden_layers": 8, "layer_types": ["sliding_attention", "full_attention"] * 4}, (6, 7)),
        ("gemma4", GEMMA4, (3, 4, 8, 9)),
        ("gemma4", {**GEMMA4, "num_kv_shared_layers": 0}, (8, 9)),
    ],
)
def test_a_long_model_is_drawn_out_from_short_ones(family: str, changed: Any, short: tuple[int, ...]) -> None:
    """To the byte as counted on all of its layers: Gemma 4's last ones take keys and values of earlier ones."""
    of = sketch(family, **changed)
    assert of._short == short
    for recomputed in (0, of.layers):
        peak, kept, logits = of._count([ROW], range(of.layers), recomputed > 0)
        drawn = of._drawn([ROW], again=recomputed > 0)
        assert (drawn.peak, drawn.kept, drawn.logits) == (peak, kept, logits)
        assert of.take([ROW], recomputed).total == peak


def test_recomputed_layers_keep_their_input_alone() -> None:
    of = sketch(num_hidden_layers=9)
    totals = [of.take([ROW], layers).total for layers in range(10)]
    assert totals == sorted(totals, reverse=True)
    found = of.kept_per_token([ROW])
    assert found.layers == 9
    assert found.recomputed == 64 * 4
    assert totals[0] - totals[1] == pytest.approx(39 * (found.kept - found.recomputed), abs=2)


def test_a_gpu_has_other_attention() -> None:
    """It keeps no block of scores; queries, keys and values in the dtype of the model."""
    on = {device: sketch(device=device, dtype="bfloat16", num_hidden_layers=4) for device in ("cpu", "cuda")}
    assert on["cuda"].take([ROW]).total < on["cpu"].take([ROW]).total


def test_padded_batches_take_more() -> None:
    plain, flat = sketch(engine="plain"), sketch()
    assert isinstance(plain.engine, PlainEngine)
    assert plain.take([ROW]).logits > flat.take([ROW]).logits


def test_layers_of_a_short_model_are_as_wide_as_in_the_whole_one() -> None:
    """Of Gemma 4, whose layers that see everything have wider heads, and whose last ones have a wider MLP."""
    of = sketch("gemma4", **GEMMA4)
    local, everything = "sliding_attention", "full_attention"
    own, taken = [(kind, "", False) for kind in (local, everything)], [(kind, "", True) for kind in (local, everything)]
    assert kinds(of.config) == [*[own[0]] * 4, own[1], *[taken[0]] * 4, taken[1]]
    model = of._of(of._short)[0]
    layers = [(layer.self_attn.head_dim, layer.mlp.intermediate_size) for layer in activations.decoder_layers(model)]
    assert layers == [(16, 96), (32, 96), (16, 192), (32, 192)]
    assert (model.config.num_kv_shared_layers, of.config.num_kv_shared_layers) == (2, 5)
    assert key_heads(of.config) == (2, 16)


@pytest.mark.parametrize(("family", "layers", "every"), [("llama", 7, 1), ("gemma3", 6, 2), ("gemma4", 4, 4)])
def test_after_how_many_layers_their_kinds_repeat(family: str, layers: int, every: int) -> None:
    kinds = ["sliding_attention", "full_attention"] * 3 if family == "gemma3" else None
    kind, usual = FAMILIES[family]
    config = AutoConfig.for_model(kind, **{**usual, "num_hidden_layers": layers, "layer_types": kinds})
    assert period(config) == every
    short = shortened(config, range(3))
    assert (short.num_hidden_layers, config.num_hidden_layers) == (3, layers)
