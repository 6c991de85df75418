"""From logits to tokens: a row for each request, each with its own temperature, top-k, top-p and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.inference.grammar import Grammar

CANDIDATES = 256
"""So many likeliest tokens nearly always hold the share that top-p asks for; the whole vocabulary is sorted if not."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    temperature: 0 takes the likeliest token, each time the same.
    top_k, top_p: only the k likeliest tokens, of those only the fewest that hold a share p; 0 and 1 leave all in.
    seed: the same seed gives the same answer, whatever is computed beside it; None draws another each time.
    logprobs: None, or how many alternatives each token tells (0: only its own log-probability).
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    logprob: natural, of the distribution before temperature, top-k and top-p; NaN unless asked for.
    top: the likeliest ids with theirs, likeliest first.
    """

    id: int
    logprob: float = float("nan")
    top: tuple[tuple[int, float], ...] = ()


def random_numbers(seed: int | None) -> torch.Generator:
    """The random numbers of one request."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def choose(
    logits: Tensor,
    samplings: Sequence[Sampling],
    generators: Sequence[torch.Generator],
    grammars: Sequence[Grammar | None] = (),
) -> list[Token]:
    """The next token of each row of logits [R, vocabulary], where it has a grammar one that this allows."""
    told_of = logits = logits.float()
    if any(grammars):
        logits = logits.clone()
        for row, grammar in zip(logits, grammars, strict=True):
            if grammar is not None:
                grammar.hide(row)
    ids = logits.argmax(-1)
    drawn = [i for i, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        rows = [samplings[i] for i in drawn]
        uniform = [torch.rand((), generator=generators[i], dtype=torch.float64) for i in drawn]
        ids[drawn] = _draw(logits[drawn], rows, torch.stack(uniform).to(logits.device))
    tokens = [Token(id) for id in ids.tolist()]
    told = [i for i, sampling in enumerate(samplings) if sampling.logprobs is not None]
    if told:
        widest = max(samplings[i].logprobs or 0 for i in told)
        for i, token in zip(told, _tell(told_of[told], ids[told], widest), strict=True):
            tokens[i] = Token(token.id, token.logprob, token.top[: samplings[i].logprobs])
    return tokens


def _tell(logits: Tensor, ids: Tensor, widest: int) -> list[Token]:
    """The tokens with their log-probability, and those of the `widest` likeliest."""
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, ids[:, None])[:, 0].tolist()
    best = logprobs.topk(min(widest, logits.shape[1]))
    tops = [tuple(zip(*pair, strict=True)) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return [Token(id, logprob, top) for id, logprob, top in zip(ids.tolist(), own, tops, strict=True)]


def _draw(logits: Tensor, samplings: Sequence[Sampling], uniform: Tensor) -> Tensor:
    """[R] ids: for each row the token whose share of the distribution its uniform number [R] falls into."""
    logits = logits / _column([s.temperature for s in samplings], logits)
    limited = [i for i, s in enumerate(samplings) if s.top_k > 0 or s.top_p < 1]
    free = [i for i in range(len(samplings)) if i not in set(limited)]
    ids = uniform.new_zeros(len(samplings), dtype=torch.long)
    if free:
        ids[free] = _inverse(logits[free].softmax(-1).double(), uniform[free])
    if limited:
        ids[limited] = _draw_likeliest(logits[limited], [samplings[i] for i in limited], uniform[limited])
    return ids


def _draw_likeliest(logits: Tensor, samplings: Sequence[Sampling], uniform: Tensor) -> Tensor:
    width = logits.shape[1]
    top_k = [s.top_k if 0 < s.top_k < width else width for s in samplings]
    some = min(width, max([CANDIDATES, *(k for k in top_k if k < width)]))
    ids = uniform.new_zeros(len(samplings), dtype=torch.long)
    left = list(range(len(samplings)))
    for candidates in (some, width):
        best = logits[left].topk(candidates)
        k = _column([top_k[i] for i in left], best.values)
        behind = torch.arange(candidates, device=logits.device)[None] >= k
        everything = torch.where(
            k < width,
            best.values.masked_fill(behind, -torch.inf).logsumexp(-1, keepdim=True),
            logits[left].logsumexp(-1, keepdim=True),
        )
        shares = (best.values - everything).exp().double().masked_fill(behind, 0)
        before = shares.cumsum(-1) - shares
        top_p = _column([samplings[i].top_p for i in left], shares)
        kept = shares.masked_fill((before >= top_p) & (before > 0), 0)
        found = best.indices.gather(1, _inverse(kept, uniform[left])[:, None])[:, 0]
        # Whether the candidates are all that may be drawn: they reach top-p, or are the whole of top-k.
        whole = ((shares.sum(-1, keepdim=True) >= top_p) | (k <= candidates))[:, 0].tolist()
        done = [i for i, each in enumerate(whole) if each]
        ids[[left[i] for i in done]] = found[done]
        left = [i for i, each in zip(left, whole, strict=True) if not each]
        if not left:
            break
    return ids


def _inverse(shares: Tensor, uniform: Tensor) -> Tensor:
    """[R]: the first place at which the running sum of shares [R, K] exceeds uniform [R] of their total."""
    sums = shares.cumsum(-1)
    total = sums[:, -1]
    below = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))  # rounding: never all of it
    return torch.searchsorted(sums, below[:, None], right=True)[:, 0]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
