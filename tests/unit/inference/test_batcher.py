"""Requests answered together are answered as alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import add_adapter, make_model, save_model

from luthier.data.render import Renderer
from luthier.errors import InputError
from luthier.hub.fetch import LocalModel
from luthier.inference.batcher import Ask, Batcher, Sampling, Token
from luthier.inference.grammar import hold_to
from luthier.inference.opened import Opened
from luthier.model import adapters, load
from luthier.recipe.schema import ModelSettings

PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7], [300, 20, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19], [42]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and two adapters for it: `one` and `two`."""
    root = tmp_path_factory.mktemp("batcher")
    save_model(root / "base")
    renderer = make_renderer(root / "base")
    for seed, name in enumerate(("one", "two")):
        tuned = add_adapter(make_model("llama"), seed=seed)
        adapters.save(tuned, root / name, renderer, base_ref="tiny", base_folder=root / "base", system=None)
    return root


def make_renderer(folder: Path) -> Renderer:
    return load.make_renderer(folder, load.load_tokenizer(folder, ModelSettings(ref=str(folder))), None)


def opened(folder: Path) -> Opened:
    """The model without an adapter."""
    renderer = make_renderer(folder / "base")
    model = load.load_model(folder / "base", dtype="float32", device="cpu").eval()
    return Opened(model, renderer, None, LocalModel(folder / "base", "tiny", None, None), None, "float32", "cpu")


@pytest.fixture
def batcher(folder: Path) -> Iterator[Batcher]:
    made = Batcher(opened(folder))
    made.add("one", folder / "one")
    made.add("two", folder / "two")
    yield made
    made.close()


def expected(folder: Path, prompt: list[int], adapter: str | None, count: int) -> list[int]:
    """What transformers itself answers, greedily."""
    model = opened(folder).model
    if adapter is not None:
        model = adapters.load(model, folder / adapter, folder / "base")
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=[2, 0]
    )
    return [token for token in output[0, len(prompt) :].tolist() if token not in (2, 0)]


def ids(answer: Iterator[Token]) -> list[int]:
    return [token.id for token in answer]


def test_together_as_alone_for_each_adapter(batcher: Batcher, folder: Path) -> None:
    asked = [(prompt, model) for prompt in PROMPTS for model in ("base", "one", "two")]
    sampling = Sampling(max_new_tokens=12)
    answers = [batcher.submit(Ask(prompt, model, sampling)) for prompt, model in asked]
    found = [ids(answer) for answer in answers]
    assert found == [expected(folder, prompt, None if model == "base" else model, 12) for prompt, model in asked]
    assert found[0] != found[1] != found[2]
    assert batcher.running() == batcher.waiting() == 0


def test_a_stop_token_ends_and_is_not_given(batcher: Batcher) -> None:
    first = ids(batcher.submit(Ask([5, 6, 7], "base", Sampling(max_new_tokens=3))))
    assert len(first) == 3
    batcher._stop_ids[None] = frozenset([first[2]])
    answer = batcher.submit(Ask([5, 6, 7], "base", Sampling(max_new_tokens=3)))
    assert (ids(answer), answer.finish) == (first[:2], "stop")


def test_the_length_ends_an_answer_its_own_or_the_models(batcher: Batcher) -> None:
    answer = batcher.submit(Ask([5, 6], "base", Sampling(max_new_tokens=4)))
    assert (len(ids(answer)), answer.finish) == (4, "length")
    answer = batcher.submit(Ask([5] * 250, "base", Sampling(max_new_tokens=99)))
    assert (len(ids(answer)), answer.finish) == (6, "length")


def test_a_seed_gives_the_same_answer_whatever_is_computed_beside_it(batcher: Batcher) -> None:
    ask = Ask([5, 6, 7], "one", Sampling(max_new_tokens=20, temperature=1, top_p=0.9, seed=7))
    alone = ids(batcher.submit(ask))
    answers = [batcher.submit(Ask(prompt, "two", Sampling(20, temperature=1))) for prompt in PROMPTS]
    assert ids(batcher.submit(ask)) == alone
    assert [len(ids(answer)) <= 20 for answer in answers] == [True] * 4


def test_log_probabilities_come_with_the_tokens(batcher: Batcher) -> None:
    token = next(batcher.submit(Ask([5, 6], "base", Sampling(1, logprobs=2))))
    assert token.top[0] == (token.id, token.logprob)
    assert len(token.top) == 2


def test_a_cancelled_answer_ends_and_keeps_what_was_said(batcher: Batcher) -> None:
    batcher.max_batch = 1
    answer, waiting = (batcher.submit(Ask([5, 6], "base", Sampling(200))) for _ in range(2))
    first = next(answer)
    waiting.cancel()
    answer.cancel()
    assert (ids(waiting), waiting.finish) == ([], "cancelled")
    rest = ids(answer)
    assert answer.finish == "cancelled"
    assert 1 + len(rest) < 200
    assert first.id == ids(batcher.submit(Ask([5, 6], "base", Sampling(1))))[0]


def test_whoever_waits_is_told_of_each_token(batcher: Batcher) -> None:
    told, ended = [], threading.Event()
    answer = batcher.submit(Ask([5, 6], "base", Sampling(5)))

    def callback() -> None:
        told.extend(answer.take())
        if answer.done:
            ended.set()

    answer.notify(callback)
    assert ended.wait(60)
    assert (len(told), answer.finish) == (5, "length")


def test_a_failure_is_raised_and_the_next_request_is_answered(batcher: Batcher, monkeypatch: Any) -> None:
    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(batcher._decoder, "step", fail)
        answer = batcher.submit(Ask([5, 6], "base", Sampling(5)))
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            list(answer)
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            answer.take()
    assert len(ids(batcher.submit(Ask([5, 6], "base", Sampling(5))))) == 5


def test_a_grammar_that_gives_up_fails_its_own_request_alone(batcher: Batcher, folder: Path) -> None:
    broken = hold_to({"type": "boolean"}, make_renderer(folder / "base"), batcher.vocabulary)
    with pytest.raises(RuntimeError):
        broken.take(5)
    beside = batcher.submit(Ask([5, 6, 7], "base", Sampling(12)))
    with pytest.raises(RuntimeError, match="cannot be held to its schema"):
        list(batcher.submit(Ask([5, 6, 7], "base", Sampling(12), broken)))
    assert ids(beside) == expected(folder, [5, 6, 7], None, 12)


def test_adapters_come_and_go(batcher: Batcher, folder: Path) -> None:
    assert batcher.names() == ["base", "one", "two"]
    going = batcher.submit(Ask(PROMPTS[0], "one", Sampling(40)))
    batcher.remove("one")
    assert batcher.names() == ["base", "two"]
    with pytest.raises(InputError) as refused:
        batcher.submit(Ask([5], "one"))
    assert str(refused.value) == "one: there is no such model\n  fix: name one of: base, two"
    assert ids(going) == expected(folder, PROMPTS[0], "one", 40)
    batcher.add("one", folder / "two")  # another adapter under the old name
    sampling = Sampling(12)
    assert ids(batcher.submit(Ask(PROMPTS[0], "one", sampling))) == expected(folder, PROMPTS[0], "two", 12)
    batcher.remove("one")
    batcher.remove("two")
    assert batcher.names() == ["base"]
    assert ids(batcher.submit(Ask(PROMPTS[0], "base", sampling))) == expected(folder, PROMPTS[0], None, 12)
    batcher.add("again", folder / "one")
    assert ids(batcher.submit(Ask(PROMPTS[0], "again", sampling))) == expected(folder, PROMPTS[0], "one", 12)


def test_an_adapter_is_added_while_answers_run(batcher: Batcher, folder: Path) -> None:
    going = [batcher.submit(Ask(PROMPTS[0], model, Sampling(150))) for model in ("base", "one")]
    first = [next(answer).id for answer in going]
    batcher.add("three", folder / "two")
    found = [[token, *ids(answer)] for token, answer in zip(first, going, strict=True)]
    assert found == [expected(folder, PROMPTS[0], adapter, 150) for adapter in (None, "one")]


def test_what_cannot_be_answered_is_refused(batcher: Batcher, folder: Path) -> None:
    for prompt, said in [
        ([], "prompt: has no tokens\n  fix: ask something"),
        (
            [5, 400],
            "prompt: has a token that the model does not know: it has 400\n  fix: use the model's own tokenizer",
        ),
        ([5] * 256, "prompt: has 256 tokens, and the model takes 256 with its answer\n  fix: shorten it"),
    ]:
        with pytest.raises(InputError) as refused:
            batcher.submit(Ask(prompt, "base"))
        assert str(refused.value) == said
    with pytest.raises(InputError, match="there is a model of this name already"):
        batcher.add("one", folder / "two")
    with pytest.raises(InputError, match="is no adapter"):
        batcher.remove("base")
    with pytest.raises(InputError, match=r"has no luthier\.json"):
        batcher.add("three", folder / "base")
    assert batcher.names() == ["base", "one", "two"]


def test_closing_while_an_adapter_is_added_ends_who_waits(folder: Path) -> None:
    batcher = Batcher(opened(folder))
    begun, closing = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert closing.wait(60)

    jobs = [threading.Thread(target=batcher._do, args=[job]) for job in (slow, lambda: None)]
    jobs[0].start()
    assert begun.wait(60)
    jobs[1].start()
    answer = batcher.submit(Ask([5, 6], "base", Sampling(5)))
    closer = threading.Thread(target=batcher.close)
    closer.start()
    while not batcher._closed:
        pass
    closing.set()
    for thread in (closer, *jobs):
        thread.join(60)
    assert (ids(answer), answer.finish) == ([], "cancelled")


def test_closing_ends_what_runs(folder: Path) -> None:
    batcher = Batcher(opened(folder), max_batch=1)
    answers = [batcher.submit(Ask([5, 6], "base", Sampling(200))) for _ in range(2)]
    next(answers[0])
    batcher.close()
    assert [answer.finish for answer in answers] == ["cancelled", "cancelled"]
    with pytest.raises(InputError, match="is not answering any more"):
        batcher.submit(Ask([5], "base"))
