"""`luthier eval`: base and tuned model on the run's own held-out rows."""

from __future__ import annotations

import math
from typing import Any

from luthier import console
from luthier.data.prepare import Prepared, pick_max_length, prepare
from luthier.engine.choose import pick_engine
from luthier.engine.engines import PlainEngine, install
from luthier.errors import Problem, RunError
from luthier.evaluation.answers import compare, questions, with_reference_losses
from luthier.evaluation.heldout import mean_loss
from luthier.evaluation.rows import measure_references
from luthier.inference.opened import Opened, open_run
from luthier.model.load import context_length
from luthier.report.record import RunFolder

BUDGET = 2048  # tokens computed at once, without gradients


def evaluate(run: RunFolder) -> dict[str, Any]:
    """Losses, perplexities and answers, kept in the run's evaluation.json. Raises RunError without held-out rows."""
    opened = open_run(run)
    data = heldout_rows(opened, run)
    if not data.heldout:
        fix = "train with data.holdout: 5% (the default) to have rows that were never trained"
        raise RunError(Problem(str(run.path), "no rows were held out", fix))
    recipe = run.read_recipe()
    examples = data.heldout_examples
    engine = pick_engine(opened.model, examples, asked=recipe.train.engine).value
    console.say(f"Loss of {len(data.heldout):,} held-out rows …")
    tuned = mean_loss(opened.model, engine, examples, budget=BUDGET)
    with opened.model.disable_adapter():
        base = mean_loss(opened.model, engine, examples, budget=BUDGET)
    references = measure_references(opened.model, engine, data.heldout_conversations, data.heldout, budget=BUDGET)
    install(opened.model, PlainEngine())
    console.say("Answers of both models …")
    asked = questions(data.heldout_conversations, recipe.prompts, recipe.data.system)
    found = {
        "rows": len(data.heldout),
        "labels": sum(example.num_labels for example in examples),
        "base": {"loss": base, "perplexity": perplexity(base)},
        "tuned": {"loss": tuned, "perplexity": perplexity(tuned)},
        "answers": with_reference_losses(compare(opened.model, opened.renderer, asked), references),
    }
    run.write_evaluation(found)
    return found


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is more than a float can hold."""
    return math.exp(loss) if loss < 700 or math.isnan(loss) else math.inf


def heldout_rows(opened: Opened, run: RunFolder) -> Prepared:
    """The run's rows, split as they were for training: the split depends on their text and the seed alone."""
    recipe = run.read_recipe()
    longest = pick_max_length(recipe.data, context_length(opened.base.path)).value
    data = prepare(recipe.data, opened.renderer, max_length=longest, seed=recipe.train.seed)
    run.check_files(data.fingerprint)
    return data
