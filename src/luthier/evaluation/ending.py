"""Does the model stop where it should? Its probability of ending, at the places where held-out answers end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from luthier.data.render import IGNORE, Example, Renderer
from luthier.engine.instance import evaluating, takes_logits_to_keep

ROWS = 32  # measured, spread over the held-out ones


def ends(example: Example, end_of_turn_id: int) -> list[int]:
    """Where its trained turns end: labelled end-of-turn tokens with nothing trained behind them in the same turn.

    labels -100 -100 8 9 END -100 -100 7 END -> [4, 8]
    """
    behind = [*example.labels[1:], IGNORE]
    return [
        place
        for place, (label, after) in enumerate(zip(example.labels, behind, strict=True))
        if label == end_of_turn_id and after == IGNORE and place > 0
    ]


def chosen(examples: Sequence[Example]) -> Sequence[Example]:
    """Those that are measured."""
    return examples[:: max(1, len(examples) // ROWS)][:ROWS]


def end_probability(model: Any, renderer: Renderer, examples: Sequence[Example]) -> float | None:
    """The mean probability, over the ends of turns, that the next token is one that ends an answer.

    None where no row has such a place (plain text cut into pieces).
    """
    with evaluating(model), torch.no_grad():  # once: it walks through all modules
        found = [_probabilities(model, renderer, example) for example in chosen(examples)]
    flat = [probability for some in found for probability in some]
    return sum(flat) / len(flat) if flat else None


def _probabilities(model: Any, renderer: Renderer, example: Example) -> list[float]:
    places = ends(example, renderer.end_of_turn_id)
    if not places:
        return []
    before = torch.tensor(places, device=model.device) - 1
    input_ids = torch.tensor([example.input_ids], device=model.device)
    if takes_logits_to_keep(model):
        logits = model(input_ids=input_ids, logits_to_keep=before, use_cache=False).logits[0]
    else:
        logits = model(input_ids=input_ids, use_cache=False).logits[0, before]
    stops = torch.tensor(renderer.stop_ids, device=logits.device)
    return [float(p) for p in logits.float().softmax(-1)[:, stops].sum(-1)]
