"""What follows from rows, model and machine before the first step: steps, intervals, micro-batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from luthier.choice import Choice
from luthier.data.render import Example
from luthier.data.steps import Steps
from luthier.engine.engines import Engine
from luthier.errors import Problem, RecipeError
from luthier.hardware.memory import available_bytes
from luthier.recipe.schema import TrainSettings
from luthier.training.activations import Activations
from luthier.training.cut import Cut

# From here on a device gets no faster. On a CPU larger micro-batches leave its cache, smaller ones share fewer tokens:
# on two AVX2 cores a step of 32 rows of SmolLM2 in float32 took 7 % less at 1024 tokens than at 512, with 1 GB more.
MOST_TOKENS = {"cpu": 1024, "mps": 4096, "cuda": 16384}
BATCH_SIZE = 16
ASKED = "the recipe asks for it"
# Below, a smaller micro-batch costs more than recomputing every layer. On two AVX2 cores, SmolLM2 in float32 computed
# 115 tokens a second at 512, 118 at 256, 96 at 128, 65 at 64, and 87 at 512 with every layer recomputed. GPUs: a guess.
USEFUL_TOKENS = {"cpu": 128, "mps": 512, "cuda": 2048}
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
    return Choice(settings.batch_size, ASKED)


def total_steps(settings: TrainSettings, steps: Steps) -> int:
    """Optimizer steps of the run."""
    return settings.steps or math.ceil(settings.epochs * len(steps))


def check_heldout(settings: TrainSettings, heldout: bool) -> None:
    """Raises RecipeError for settings that need held-out rows where the data leaves none."""
    needing = [name for name in ("early_stopping_patience", "load_best") if getattr(settings, name)]
    if needing and not heldout:
        what, fix = "needs held-out rows, and none is left", "the ledger above says what became of the rows"
        raise RecipeError(*(Problem(f"train.{name}", what, fix) for name in needing))


def pick_checkpointing(
    settings: TrainSettings, found: Activations, steps: Steps, device: str, *, to_come: int = 0
) -> Choice[int]:
    """How many layers to recompute: as few as let the longest row and a micro-batch of useful size fit.

    `to_come`: bytes of what is free that the weights will take, where they are not loaded yet.

    Raises RecipeError for layers that the model does not have.
    """
    asked = settings.gradient_checkpointing
    if asked is True and found.layers == 0:
        raise _cannot_checkpoint("the model's code cannot recompute its layers")
    if type(asked) is int and asked > found.layers:  # True is an int too
        raise _cannot_checkpoint(f"the model has {found.layers} layers that can be recomputed, not {asked}")
    if asked != "auto":
        return Choice(found.layers if asked is True else int(asked), ASKED)
    tokens, free = _needed_tokens(settings, steps, device), free_bytes(settings, device, to_come)
    count = found.layers_to_recompute(tokens, MEMORY_SHARE * free)
    taken, less = (f"{tokens * found.bytes_per_token(layers) / 1e9:.1f}" for layers in (0, count))
    needs = f"{tokens:,} tokens at once take about {taken} of {free / 1e9:.1f} GB free"
    if count == 0:
        return Choice(0, f"recomputing costs a third of the time, and {needs}")
    return Choice(count, f"{needs}; {less} if {count} of {found.layers} layers are recomputed")


def _cannot_checkpoint(what: str) -> RecipeError:
    return RecipeError(Problem("train.gradient_checkpointing", what, "leave it at auto, or lower it"))


def check_offloading(settings: TrainSettings, device: str) -> None:
    """Raises RecipeError where there is no other memory to go to."""
    if settings.offload_activations and device != "cuda":
        what = f"moves activations from the GPU's memory to the host's, and this run computes on {device}"
        raise RecipeError(Problem("train.offload_activations", what, "leave it out"))


def _needed_tokens(settings: TrainSettings, steps: Steps, device: str) -> int:
    """Tokens that must fit at once: the longest row, and the micro-batch asked for or the smallest useful one."""
    longest = max(steps.lengths)
    if settings.gradient_accumulation_steps != "auto":
        rows = math.ceil(max(map(len, steps.epoch(0))) / settings.gradient_accumulation_steps)
        return sum(sorted(steps.lengths)[-rows:])
    asked = settings.micro_batch_tokens
    return max(longest, min(sum(steps.lengths), USEFUL_TOKENS[device] if asked == "auto" else asked))


def free_bytes(settings: TrainSettings, device: str, to_come: int = 0) -> int:
    """What activations may take half of. `to_come`: bytes of it that the weights will take."""
    if settings.offload_activations:
        return available_bytes("cpu")
    return max(0, available_bytes(device) - to_come)


def pick_save_steps(settings: TrainSettings, steps: int, eval_steps: int) -> Choice[int]:
    if settings.save_steps != "auto":
        return Choice(settings.save_steps, ASKED)
    if settings.load_best:
        return Choice(eval_steps, "load_best needs a checkpoint at every evaluation")
    return Choice(max(1, min(100, steps // 10)), "ten checkpoints in a run, and at most 100 steps lost")


def pick_eval_steps(settings: TrainSettings, steps: int) -> Choice[int]:
    if settings.eval_steps != "auto":
        return Choice(settings.eval_steps, ASKED)
    if settings.load_best and settings.save_steps != "auto":
        return Choice(settings.save_steps, "load_best needs the loss of each checkpoint")
    return Choice(max(1, math.ceil(steps / 5)), "five evaluations in a run, besides the one before it")


def pick_micro_batch(
    settings: TrainSettings, found: Activations, recomputed: int, device: str, *, to_come: int = 0
) -> Choice[int]:
    """Tokens of a micro-batch: as many as the device can use and memory can hold."""
    if settings.micro_batch_tokens != "auto":
        return Choice(settings.micro_batch_tokens, ASKED)
    each = found.bytes_per_token(recomputed)
    free = free_bytes(settings, device, to_come)
    fitting = max(1, int(MEMORY_SHARE * free / each))
    if fitting < MOST_TOKENS[device]:
        return Choice(fitting, f"half of the {free / 1e9:.1f} GB free, at about {each / 1e6:.1f} MB a token")
    return Choice(
        MOST_TOKENS[device], f"more is no faster on {device}; about {each * MOST_TOKENS[device] / 1e9:.1f} GB"
    )


def saved_tokens(engine: Engine, examples: Sequence[Example], steps: Steps, cut: Cut) -> Choice[str]:
    """How many tokens the layers compute for an epoch, against a padded batch of all rows of each step."""
    real = padded = computed = 0
    for step in steps.epoch(0):
        rows = [examples[i] for i in step]
        real += sum(len(row.input_ids) for row in rows)
        padded += len(rows) * max(len(row.input_ids) for row in rows)
        computed += sum(map(engine.cost, cut.batches(rows, engine)))
    size = f"{steps.rows} rows" if steps.tokens is None else "a whole step"
    fewer = f"{1 - computed / padded:.0%} fewer than padded batches of {size}"
    saved = f", {1 - computed / real:.0%} of them shared by rows or after the last label" if computed < real else ""
    return Choice(f"{computed:,} / {padded:,}", f"{real:,} are real tokens{saved}; the layers compute {fewer}")
