"""The verdict on an export follows from its figures, and from nothing that is written."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.export.record import BOUNDS, Bound, Exported, Figures, judge
from luthier.export.verify import compare

FOUND = Figures(
    runtime="llama.cpp",
    chat=True,
    prompts=12,
    source="held-out prompts",
    same_prompts=12,
    positions=400,
    kl=0.004,
    top1=0.96,
    end_trained=0.84,
    end_exported=0.82,
    answers=6,
    ended_trained=5,
    ended_exported=4,
    same_answers=2,
)
BOUND = Bound(kl=0.005, top1=0.95, ending=0.03)


def rows(**change: object) -> list[tuple[str, str, str, str, bool]]:
    return [(c.name, c.trained, c.exported, c.bound, c.holds) for c in judge(FOUND.model_copy(update=change), BOUND)]


def test_each_figure_beside_its_bound() -> None:
    assert rows() == [
        ("prompts with identical tokens", "", "12 of 12", "all", True),
        ("KL divergence, nats (mean)", "0", "0.004", "at most 0.005", True),
        ("same likeliest token", "100 %", "96.0 %", "at least 95.0 %", True),
        ("probability of ending, where answers end", "84.0 %", "82.0 %", "at least 81.0 %", True),
        ("free answers that end", "5 of 6", "4 of 6", "at least 4", True),
    ]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"same_prompts": 11}, "prompts with identical tokens"),
        ({"kl": 0.0051}, "KL divergence, nats (mean)"),
        ({"kl": None}, "KL divergence, nats (mean)"),  # no number
        ({"top1": 0.94}, "same likeliest token"),
        ({"end_exported": 0.8}, "probability of ending, where answers end"),
        ({"ended_exported": 3}, "free answers that end"),
    ],
)
def test_what_fails(change: dict[str, object], failed: str) -> None:
    assert [name for name, *_, holds in rows(**change) if not holds] == [failed]


def test_answers_without_an_end_are_not_judged_by_it() -> None:
    assert "probability of ending, where answers end" not in [name for name, *_ in rows(end_trained=None)]


def test_weights_read_back_prove_no_chat() -> None:
    assert [name for name, *_ in rows(chat=False)] == [
        "KL divergence, nats (mean)",
        "same likeliest token",
        "probability of ending, where answers end",
    ]


def made(figures: Figures | None) -> Exported:
    return Exported(
        luthier="0.1.0",
        to="gguf",
        weights="q8_0",
        run="runs/a",
        adapter_sha256="",
        base="a/b",
        revision=None,
        made="2026-11-26",
        seconds=1.0,
        figures=figures,
        files={},
    )


def test_the_state_follows_from_the_figures() -> None:
    assert made(FOUND).state == "verified"
    assert made(None).state == "unverified"
    assert made(FOUND.model_copy(update={"chat": False})).state == "unverified"
    assert made(FOUND.model_copy(update={"chat": False, "kl": 9.0})).state == "failed"
    assert made(FOUND.model_copy(update={"same_prompts": 0})).state == "failed"


def test_coarser_weights_are_allowed_more() -> None:
    for finer, coarser in (("float32", "float16"), ("f16", "q8_0"), ("q8_0", "q4_k_m")):
        assert BOUNDS[finer].kl < BOUNDS[coarser].kl
        assert BOUNDS[finer].top1 > BOUNDS[coarser].top1


def test_divergence_and_agreement() -> None:
    expected = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    found = torch.tensor([[0.25, 0.75], [0.8, 0.2]]).log()
    divergence, same = compare(expected, found)
    assert divergence.tolist() == pytest.approx(
        [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.9 * math.log(9 / 8) + 0.1 * math.log(0.5)], rel=1e-5
    )
    assert same.tolist() == [False, True]


def test_a_padded_vocabulary_is_compared_where_both_have_tokens() -> None:
    expected = torch.tensor([[0.5, 0.5]]).log()
    found = torch.tensor([[0.5, 0.5, 0.0]]).log()
    divergence, same = compare(expected, found)
    assert (divergence.tolist(), same.tolist()) == ([0.0], [True])
