"""What follows from rows, model and machine before the first step: steps, intervals, micro-batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from luthier.choice import Choice
from luthier.data.batches import micro_batches
from luthier.data.render import Example
from luthier.data.steps import Steps
from luthier.engine.engines import Engine
from luthier.errors import Problem, RecipeError
from luthier.hardware.memory import available_bytes
from luthier.recipe.schema import TrainSettings

# From here on a device gets no faster. On a CPU larger ones leave its cache: on two AVX2 cores, SmolLM2 in float32
# computed 160, 131 tokens a second at 512, 120 to 159 at 1024 and 75 to 110 at 2048.
MOST_TOKENS = {"cpu": 512, "mps": 4096, "cuda": 16384}
BATCH_SIZE = 16
MEMORY_SHARE = 0.5  # of what is free; the rest is for the optimizer, the evaluation and the user's other programs


def steps_of(settings: TrainSettings, examples: Sequence[Example]) -> Steps:
    """Which rows make each optimizer step."""
    rows = BATCH_SIZE if settings.batch_size == "auto" else settings.batch_size
    return Steps([len(example.input_ids) for example in examples], rows, settings.batch_tokens, settings.seed)


def pick_batch_size(settings: TrainSettings, steps: Steps) -> Choice[float]:
    """Rows of an optimizer step; on average, where tokens are asked for."""
    if settings.batch_tokens is not None:
        tokens, rows = (round(total / len(steps), 1) for total in (sum(steps.lengths), len(steps.lengths)))
        return Choice(rows, f"on average: batch_tokens cuts an epoch into {len(steps):,} steps of {tokens:,} tokens")
    if settings.batch_size == "auto":
        return Choice(BATCH_SIZE, "the usual size for an adapter")
    return Choice(settings.batch_size, "the recipe asks for it")


def total_steps(settings: TrainSettings, steps: Steps) -> int:
    """Optimizer steps of the run."""
    return settings.steps or math.ceil(settings.epochs * len(steps))


def check_heldout(settings: TrainSettings, heldout: bool) -> None:
    """Raises RecipeError for settings that need held-out rows where the data leaves none."""
    needing = [name for name in ("early_stopping_patience", "load_best") if getattr(settings, name)]
    if needing and not heldout:
        what, fix = "needs held-out rows, and none is left", "the ledger above says what became of the rows"
        raise RecipeError(*(Problem(f"train.{name}", what, fix) for name in needing))


def pick_checkpointing(settings: TrainSettings) -> Choice[bool]:
    if settings.gradient_checkpointing != "auto":
        return Choice(settings.gradient_checkpointing, "the recipe asks for it")
    return Choice(False, "it costs a third of the time; smaller micro-batches save memory for less")


def pick_save_steps(settings: TrainSettings, steps: int, eval_steps: int) -> Choice[int]:
    if settings.save_steps != "auto":
        return Choice(settings.save_steps, "the recipe asks for it")
    if settings.load_best:
        return Choice(eval_steps, "load_best needs a checkpoint at every evaluation")
    return Choice(max(1, min(100, steps // 10)), "ten checkpoints in a run, and at most 100 steps lost")


def pick_eval_steps(settings: TrainSettings, steps: int) -> Choice[int]:
    if settings.eval_steps != "auto":
        return Choice(settings.eval_steps, "the recipe asks for it")
    if settings.load_best and settings.save_steps != "auto":
        return Choice(settings.save_steps, "load_best needs the loss of each checkpoint")
    return Choice(max(1, math.ceil(steps / 5)), "five evaluations in a run, besides the one before it")


def pick_micro_batch(settings: TrainSettings, model: Any, examples: Sequence[Example], device: str) -> Choice[int]:
    """Tokens of a micro-batch: as many as the device can use and memory can hold."""
    if settings.micro_batch_tokens != "auto":
        return Choice(settings.micro_batch_tokens, "the recipe asks for it")
    each = bytes_per_token(model, examples, checkpointing=settings.gradient_checkpointing is True)
    free = available_bytes(device)
    fitting = max(1, int(MEMORY_SHARE * free / each))
    if fitting < MOST_TOKENS[device]:
        return Choice(fitting, f"half of the {free / 1e9:.1f} GB free, at about {each / 1e6:.1f} MB a token")
    return Choice(
        MOST_TOKENS[device], f"more is no faster on {device}; about {each * MOST_TOKENS[device] / 1e9:.1f} GB"
    )


def bytes_per_token(model: Any, examples: Sequence[Example], *, checkpointing: bool) -> float:
    """Rough memory a token takes between forward and backward: activations of each layer, and logits in float32.

    A LoRA layer keeps its input for each linear group and the MLP its three wide products, some 16 H + 5 I values a
    layer of a Llama-shaped model. Measured on SmolLM2-135M in float32: 1.9 MB a token without logits.
    """
    config = model.config.get_text_config()
    width = 4 if str(model.dtype) == "torch.float32" else 2
    hidden = config.hidden_size
    wide = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = hidden if checkpointing else 16 * hidden + 5 * wide
    labelled = sum(e.num_labels for e in examples) / sum(len(e.input_ids) for e in examples)
    return float(config.num_hidden_layers * layer * width + 3 * 4 * config.vocab_size * labelled)


def saved_tokens(
    engine: Engine, examples: Sequence[Example], settings: TrainSettings, steps: Steps, budget: int
) -> Choice[str]:
    """How many tokens the layers compute for an epoch, against a padded batch of all rows of each step."""
    parts = None if settings.gradient_accumulation_steps == "auto" else settings.gradient_accumulation_steps
    real = padded = computed = 0
    for step in steps.epoch(0):
        rows = [examples[i] for i in step]
        real += sum(len(row.input_ids) for row in rows)
        padded += len(rows) * max(len(row.input_ids) for row in rows)
        computed += sum(map(engine.cost, micro_batches(rows, engine.cost, budget=budget, parts=parts)))
    size = f"{steps.rows} rows" if steps.tokens is None else "a whole step"
    fewer = f"{1 - computed / padded:.0%} fewer than padded batches of {size}"
    return Choice(f"{computed:,} of {padded:,}", f"{real:,} are real tokens; the layers compute {fewer}")
