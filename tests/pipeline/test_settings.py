"""Each setting of a recipe does what its description says."""

from __future__ import annotations

import inspect
import math
from typing import Any
from unittest import mock

import pytest
import torch
from driver import SYSTEM, WORSE_AFTER_ONE_STEP, Workplace, adapter_bytes, events, losses, luthier
from safetensors.numpy import load_file
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from luthier.report.record import RunFolder
from luthier.training.trainer import LuthierTrainer

NO_HELDOUT = {"data": {"holdout": 0}}


def trained(shop: Workplace, name: str, **train: Any) -> RunFolder:
    """A run without held-out rows: 24 rows, 3 steps an epoch."""
    return shop.train(name, **NO_HELDOUT, train={"steps": 3, **train})


@pytest.fixture(scope="module")
def usual(shop: Workplace) -> RunFolder:
    return trained(shop, "usual")


def rates(run: RunFolder) -> list[float]:
    return [event["learning_rate"] for event in events(run, "step")]


def checkpoints(run: RunFolder) -> set[str]:
    return {path.name for path in run.checkpoints_dir.iterdir()}


# The way a step is computed changes nothing of what it is.


def close_to(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-5)


def test_accumulation_gives_the_same_losses(shop: Workplace, usual: RunFolder) -> None:
    run = trained(shop, "accumulated", gradient_accumulation_steps=2)
    assert losses(run) == close_to(losses(usual))
    assert [e["grad_norm"] for e in events(run, "step")] == close_to([e["grad_norm"] for e in events(usual, "step")])
    # Two micro-batches compute the shared beginning twice.
    assert events(run, "step")[0]["computed_tokens"] > events(usual, "step")[0]["computed_tokens"]


def test_a_log_that_is_written_late_as_on_a_gpu_says_the_same(shop: Workplace) -> None:
    """There a step is logged when the next one is queued: none waits for its own number."""
    figures = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "computed_tokens")
    settings = {"steps": 7, "logging_steps": 2, "eval_steps": 5, "save_steps": 3}
    now = shop.train("logged-now", train=settings)
    with mock.patch("luthier.training.trainer.READ_LATE", ("cpu",)):
        late = shop.train("logged-late", train=settings)
    found, expected = ([[event[name] for name in figures] for event in events(run, "step")] for run in (late, now))
    assert [row[0] for row in expected] == [2, 3, 4, 5, 6, 7]
    assert found == expected
    assert all(event["seconds"] > 0 for event in events(late, "step"))
    kinds = [(event["event"], event["step"]) for event in late.events() if event["event"] in ("step", "save")]
    assert kinds == [(event["event"], event["step"]) for event in now.events() if event["event"] in ("step", "save")]
    assert adapter_bytes(late) == adapter_bytes(now)


def test_micro_batches_give_the_same_losses(shop: Workplace, usual: RunFolder) -> None:
    run = trained(shop, "micro", micro_batch_tokens=60)
    assert losses(run) == close_to(losses(usual))
    assert run.read_resolved()["train.micro_batch_tokens"].value == 60


def test_the_plain_engine_gives_the_same_losses(shop: Workplace, usual: RunFolder) -> None:
    run = trained(shop, "plain", engine="plain")
    assert losses(run) == close_to(losses(usual))
    chosen = run.read_resolved()["train.engine"]
    assert (chosen.value, chosen.reason) == ("plain", "the recipe asks for it")
    result = (run.record() or {})["result"]
    assert result["computed_tokens"] > result["real_tokens"]  # padding


NO_REHEARSAL = mock.patch.object(LuthierTrainer, "rehearse")
NO_PLAN = mock.patch("luthier.training.forecast.plan.before_training", return_value=None)


def test_gradient_checkpointing_gives_the_same_losses(shop: Workplace, usual: RunFolder) -> None:
    with NO_REHEARSAL, NO_PLAN, mock.patch("transformers.modeling_utils.checkpoint", wraps=checkpoint) as recomputed:
        run = trained(shop, "checkpointing", gradient_checkpointing=True)
    assert losses(run) == close_to(losses(usual))
    assert run.read_resolved()["train.gradient_checkpointing"].value == 2
    assert recomputed.call_count == 3 * 2  # steps × layers


def test_one_layer_recomputed_gives_the_same_losses(shop: Workplace, usual: RunFolder) -> None:
    with NO_REHEARSAL, NO_PLAN, mock.patch("transformers.modeling_utils.checkpoint", wraps=checkpoint) as recomputed:
        run = trained(shop, "one-layer", gradient_checkpointing=1)
    assert losses(run) == close_to(losses(usual))
    assert recomputed.call_count == 3


def test_a_step_waits_for_nothing(shop: Workplace) -> None:
    """A number is read from the device where one is logged, not in each step; the optimizer is the fused one."""
    optimizers: list[Any] = []
    read: list[str] = []
    create, item = LuthierTrainer.create_optimizer, torch.Tensor.item

    def counted(tensor: torch.Tensor) -> Any:
        read.append(inspect.stack()[1].function)
        return item(tensor)

    def seen(self: LuthierTrainer, *arguments: Any) -> Any:
        optimizers.append(create(self, *arguments))
        return optimizers[-1]

    with mock.patch.object(torch.Tensor, "item", counted), mock.patch.object(LuthierTrainer, "create_optimizer", seen):
        trained(shop, "unread", logging_steps=3)
    in_training = [name for name in read if name in ("_maybe_log_save_evaluate", "training_step", "step", "_run_epoch")]
    assert in_training == ["_maybe_log_save_evaluate"] * 2  # loss and norm of three steps
    assert optimizers[0].defaults["fused"] is True


# What a step holds, and how many there are.


def test_a_step_of_so_many_tokens(shop: Workplace, rows_of_steps: list[list[Any]]) -> None:
    run = trained(shop, "by-tokens", batch_size="auto", batch_tokens=300, steps=None, epochs=2)
    assert len(rows_of_steps) == 8  # 990 tokens
    assert sorted(numbers(*rows_of_steps[:4])) == sorted(numbers(*rows_of_steps[4:])) == list(range(1, 25))
    tokens = [sum(len(row.input_ids) for row in rows) for rows in rows_of_steps]
    assert all(abs(each - 990 / 4) < 45 for each in tokens)
    assert [event["tokens"] for event in events(run, "step")] == tokens
    assert (run.record() or {})["result"]["samples_per_second"] == pytest.approx(
        48 / sum(event["seconds"] for event in events(run, "step"))
    )


@pytest.fixture
def rows_of_steps() -> Any:
    """The rows that each step really trains."""
    seen: list[list[Any]] = []
    original = LuthierTrainer.training_step

    def training_step(self: LuthierTrainer, model: Any, inputs: Any, *rest: Any) -> Any:
        seen.append(inputs)
        return original(self, model, inputs, *rest)

    with mock.patch.object(LuthierTrainer, "training_step", training_step):
        yield seen


def numbers(*steps: list[Any]) -> list[int]:
    return [example.source.number for step in steps for example in step]


def test_the_loss_is_that_of_plain_transformers(shop: Workplace, rows_of_steps: list[list[Any]]) -> None:
    """A new adapter changes nothing, so the first loss is the base model's: the mean over all labels of the step."""
    run = trained(shop, "loss", steps=1)
    model = AutoModelForCausalLM.from_pretrained(shop.model).eval()
    total = labels = 0.0
    with torch.no_grad():
        for row in rows_of_steps[0]:
            ids, targets = torch.tensor([row.input_ids]), torch.tensor([row.labels])
            learned = sum(label != -100 for label in row.labels[1:])
            total, labels = total + float(model(input_ids=ids, labels=targets).loss) * learned, labels + learned
    assert losses(run) == close_to([total / labels])


def test_batch_size_is_the_rows_of_a_step(shop: Workplace, rows_of_steps: list[list[Any]]) -> None:
    run = shop.train("batches", **NO_HELDOUT, train={"batch_size": 10, "epochs": 2})
    assert [len(step) for step in rows_of_steps] == [10, 10, 4, 10, 10, 4]
    first, second = (numbers(*rows_of_steps[i : i + 3]) for i in (0, 3))
    assert sorted(first) == sorted(second) == list(range(1, 25))
    assert first != second  # each epoch is shuffled anew
    assert (run.record() or {})["result"]["samples_per_second"] == 48 / (run.record() or {})["result"]["seconds"]


def test_a_part_of_an_epoch(shop: Workplace, rows_of_steps: list[list[Any]]) -> None:
    run = shop.train("part", **NO_HELDOUT, train={"epochs": 0.5})
    assert [len(step) for step in rows_of_steps] == [8, 8]
    result = (run.record() or {})["result"]
    assert (result["steps"], result["epochs"]) == (2, 0.6667)


def test_steps_take_the_place_of_epochs(shop: Workplace, rows_of_steps: list[list[Any]]) -> None:
    run = shop.train("steps", **NO_HELDOUT, train={"epochs": 1, "steps": 4})
    assert [len(step) for step in rows_of_steps] == [8, 8, 8, 8]
    assert events(run, "start")[0]["total_steps"] == 4
    assert (run.record() or {})["result"]["epochs"] == 1.3333


def test_the_seed_changes_order_and_start(shop: Workplace, usual: RunFolder, rows_of_steps: list[list[Any]]) -> None:
    other = trained(shop, "seed", seed=7)
    again = trained(shop, "seed-again")
    assert sorted(numbers(*rows_of_steps[:3])) == sorted(numbers(*rows_of_steps[3:]))
    assert numbers(rows_of_steps[0]) != numbers(rows_of_steps[3])
    assert adapter_bytes(again) == adapter_bytes(usual) != adapter_bytes(other)


# The optimizer.


def cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def test_warmup_as_a_share(shop: Workplace) -> None:
    """The rate of a step is that before its scheduler moves on: the first of a warm-up is 0."""
    run = trained(shop, "share", steps=4, warmup=0.5)
    assert rates(run) == pytest.approx([0, 0.005, 0.01 * cosine(0, 2), 0.01 * cosine(1, 2)])


def test_warmup_as_a_count(shop: Workplace) -> None:
    run = trained(shop, "count", steps=4, warmup=1, schedule="linear")
    assert rates(run) == pytest.approx([0, 0.01, 0.01 * 2 / 3, 0.01 / 3])


def test_no_warmup(shop: Workplace) -> None:
    run = trained(shop, "none", warmup=0, schedule="cosine")
    assert rates(run) == pytest.approx([0.01 * cosine(step, 3) for step in range(3)])


def test_the_constant_schedule(shop: Workplace) -> None:
    assert rates(trained(shop, "constant", schedule="constant", warmup=0)) == [0.01] * 3
    warmed = trained(shop, "warmed", schedule="constant", warmup=2)
    assert rates(warmed) == pytest.approx([0, 0.005, 0.01])


def test_clipping(shop: Workplace, usual: RunFolder) -> None:
    """Adam takes out a common factor of all gradients, so the weights tell little: the gradients themselves do."""

    def norm_of_the_last_step(name: str, **train: Any) -> float:
        norms = []

        def on_pre_optimizer_step(self: Any, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            norms.append(math.sqrt(sum(float(p.grad.norm()) ** 2 for p in model.parameters() if p.grad is not None)))

        with mock.patch("luthier.training.callbacks.Events.on_pre_optimizer_step", on_pre_optimizer_step):
            run = trained(shop, name, steps=1, **train)
        return norms[-1] / events(run, "step")[-1]["grad_norm"]

    assert events(usual, "step")[0]["grad_norm"] > 1  # else nothing was clipped here
    assert norm_of_the_last_step("unclipped", max_grad_norm=0) == pytest.approx(1)
    grad_norm = events(usual, "step")[0]["grad_norm"]
    assert norm_of_the_last_step("clipped", max_grad_norm=0.5) == pytest.approx(0.5 / grad_norm, rel=1e-4)


def test_weight_decay_pulls_the_weights_towards_zero(shop: Workplace, usual: RunFolder) -> None:
    """In one step after the warm-up a weight loses learning_rate × weight_decay of itself."""
    plain = load_file(trained(shop, "steady", steps=1, warmup=0).adapter_dir / "adapter_model.safetensors")
    decayed = load_file(
        trained(shop, "decay", steps=1, warmup=0, weight_decay=10.0).adapter_dir / "adapter_model.safetensors"
    )
    (name,) = [name for name in plain if "layers.0.self_attn.q_proj.lora_A" in name]
    # lora_B is 0 before the first step, so lora_A has no gradient: it is its first value here, and shrunk there.
    assert decayed[name] == pytest.approx(plain[name] * (1 - 0.01 * 10), rel=1e-5)


def test_the_adapter_is_of_the_size_asked_for(shop: Workplace) -> None:
    run = shop.train("rank", **NO_HELDOUT, adapter={"rank": 2, "alpha": 3, "targets": ["q_proj"]}, train={"steps": 1})
    weights = load_file(run.adapter_dir / "adapter_model.safetensors")
    assert {name.rpartition("layers.")[2]: array.shape for name, array in weights.items()} == {
        "0.self_attn.q_proj.lora_A.weight": (2, 64),
        "0.self_attn.q_proj.lora_B.weight": (64, 2),
        "1.self_attn.q_proj.lora_A.weight": (2, 64),
        "1.self_attn.q_proj.lora_B.weight": (64, 2),
    }


def test_every_linear_layer_is_the_default(usual: RunFolder) -> None:
    names = load_file(usual.adapter_dir / "adapter_model.safetensors").keys()
    layers = {
        name.partition("layers.0.")[2].removesuffix(".lora_A.weight")
        for name in names
        if "layers.0." in name and "lora_A" in name
    }
    assert layers == {
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    }
    assert not any("lm_head" in name or "embed" in name for name in names)


def test_dropout_turns_sharing_off_and_says_so(shop: Workplace, usual: RunFolder) -> None:
    run = shop.train("dropout", **NO_HELDOUT, adapter={"dropout": 0.5}, train={"steps": 3})
    chosen = run.read_resolved()["train.engine"]
    assert chosen.value == "flat"
    assert chosen.reason.startswith(
        "no padding, shared prefixes computed again: dropout is above 0, attention in blocks, "
        "loops compiled by numba where a process has one or two threads; "
    )
    result = (run.record() or {})["result"]
    assert result["real_tokens"] - result["computed_tokens"] == 3 * 8  # the last of each row
    assert losses(run)[0] == close_to(losses(usual)[0])  # lora_B is 0, whatever is dropped
    assert losses(run)[2] != close_to(losses(usual)[2])


# Logging, evaluating, saving.


def test_logging_steps(shop: Workplace, usual: RunFolder) -> None:
    """A line is the mean of its steps, and the last step has one in any case."""
    each = trained(shop, "each", steps=5)
    run = trained(shop, "every-second", steps=5, logging_steps=2)
    assert [event["step"] for event in events(run, "step")] == [2, 4, 5]
    one, two, three, four, five = losses(each)
    assert losses(run) == close_to([(one + two) / 2, (three + four) / 2, five])
    tokens = [event["tokens"] for event in events(each, "step")]
    assert [e["tokens"] for e in events(run, "step")] == [tokens[0] + tokens[1], tokens[2] + tokens[3], tokens[4]]
    assert (run.record() or {})["result"]["steps"] == 5


def test_saving_and_how_many_are_kept(shop: Workplace) -> None:
    run = trained(shop, "saves", steps=7, save_steps=2, save_total_limit=3)
    assert [event["step"] for event in events(run, "save")] == [2, 4, 6, 7]
    assert checkpoints(run) == {"checkpoint-4", "checkpoint-6", "checkpoint-7"}
    one = trained(shop, "one", save_steps=1, save_total_limit=1)
    assert checkpoints(one) == {"checkpoint-3"}


def test_eval_steps(shop: Workplace) -> None:
    run = shop.train("evals", train={"steps": 4, "eval_steps": 3})
    assert [event["step"] for event in events(run, "evaluation")] == [0, 3, 4]


def test_early_stopping(shop: Workplace) -> None:
    """Better at step 1, worse at 2 and 3; the last adapter is the result."""
    train = {"steps": 9, "eval_steps": 1, "early_stopping_patience": 2, "logging_steps": 5, **WORSE_AFTER_ONE_STEP}
    run = shop.train("early", train=train)
    heldout = [event["heldout_loss"] for event in events(run, "evaluation")]
    assert len(heldout) == 4
    assert heldout[1] < min(heldout[0], heldout[2], heldout[3])
    result = (run.record() or {})["result"]
    assert (result["steps"], result["epochs"]) == (3, 1.0)
    assert result["heldout_loss_after"] == heldout[3]
    assert run.state() == "finished"


def test_load_best_keeps_the_best_checkpoint(shop: Workplace) -> None:
    """Saved at every evaluation, and never deleted for a later one."""
    run = shop.train("best", train={"steps": 5, "load_best": True, "save_steps": "auto", **WORSE_AFTER_ONE_STEP})
    heldout = {event["step"]: event["heldout_loss"] for event in events(run, "evaluation")}
    assert min(heldout, key=lambda step: heldout[step]) == 1
    assert [event["step"] for event in events(run, "save")] == [1, 2, 3, 4, 5]
    assert checkpoints(run) == {"checkpoint-1", "checkpoint-5"}
    best = run.checkpoints_dir / "checkpoint-1" / "adapter_model.safetensors"
    assert adapter_bytes(run) == best.read_bytes()
    assert (run.record() or {})["result"]["heldout_loss_after"] == heldout[1]
    assert luthier("eval", run.path, "--json").json["tuned"]["loss"] == pytest.approx(heldout[1], rel=1e-5)


def test_load_best_with_intervals_of_its_own(shop: Workplace) -> None:
    run = shop.train("intervals", train={"steps": 5, "load_best": True, "save_steps": 2, **WORSE_AFTER_ONE_STEP})
    assert [event["step"] for event in events(run, "evaluation")] == [0, 2, 4, 5]
    assert [event["step"] for event in events(run, "save")] == [2, 4, 5]
    chosen = run.read_resolved()["train.eval_steps"]
    assert (chosen.value, chosen.reason) == (2, "load_best needs the loss of each checkpoint")


def test_a_training_that_diverges_is_told_as_such(shop: Workplace) -> None:
    """Two steps that give no number are not applied; a third would end it."""
    train = {"steps": 3, **WORSE_AFTER_ONE_STEP, "learning_rate": 1e30}
    run, done = shop.run("diverged"), luthier("train", shop.recipe("diverged", train=train))
    assert done.status == 0
    assert [line.partition(" Rows: ")[0] for line in done.err.splitlines()] == [
        f"note: step {step}: its loss is not a finite number, so it is not applied." for step in (2, 3)
    ]
    assert losses(run)[1:] == [None, None]
    result = (run.record() or {})["result"]
    assert (result["train_loss"], result["heldout_loss_after"]) == (None, None)
    page = run.report_file.read_text(encoding="utf-8")
    assert f"Held-out loss was {result['heldout_loss_before']:.2f} before training and has no value after it" in page


# From the command line.


def test_set_changes_any_setting(shop: Workplace) -> None:
    recipe = shop.recipe("set", **NO_HELDOUT)
    overrides = [
        "train.steps=1",
        "train.learning_rate=3e-3",
        "system=Be brief.",
        "prompts=['Who are you?']",
        "train.warmup=0",
    ]
    done = luthier("train", recipe, *(part for text in overrides for part in ("--set", text)))
    assert (done.status, done.err) == (0, "")
    kept = shop.run("set").read_recipe()
    assert (kept.train.steps, kept.train.learning_rate, kept.data.system) == (1, 0.003, "Be brief.")
    assert rates(shop.run("set")) == [0.003]
    answers = (shop.run("set").record() or {})["answers"]
    assert [(a["prompt"], a["system"], a["reference"]) for a in answers] == [("Who are you?", "Be brief.", None)]


def test_the_system_prompt_is_before_every_row(shop: Workplace, rows_of_steps: list[list[Any]]) -> None:
    from tiny import make_tokenizer

    trained(shop, "system", steps=1)
    beginning = make_tokenizer()(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n")["input_ids"]
    assert all(row.input_ids[: len(beginning)] == beginning for row in rows_of_steps[0])
    assert all(not any(label >= 0 for label in row.labels[: len(beginning)]) for row in rows_of_steps[0])
