"""`luthier train` from start to end: what it prints, what it leaves, and that it does so again."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pytest
from driver import (
    PAIRS,
    SYSTEM,
    Done,
    Workplace,
    adapter_bytes,
    events,
    files_in,
    finished,
    losses,
    luthier,
    luthier_process,
    write_rows,
)
from schema import differences

from luthier.report.languages import LANGUAGES
from luthier.report.record import RunFolder

CHECKPOINT = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "manifest.json",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
}
ADAPTER = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "luthier.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
TOP = {
    "events.jsonl",
    "ledger.jsonl",
    "recipe.yaml",
    "report.html",
    "resolved.json",
    "run.json",
    "run.lock",
}


@pytest.fixture(scope="module")
def first(shop: Workplace) -> Done:
    """`luthier train --json` in a process of its own: what the run `first` printed."""
    return finished(luthier_process("train", shop.recipe("first", train={"epochs": 2}), "--json"))


@pytest.fixture(scope="module")
def run(shop: Workplace, first: Done) -> RunFolder:
    assert first.status == 0, first.err
    return shop.run("first")


def test_standard_output_holds_one_json_object_and_nothing_else(shop: Workplace, first: Done, run: RunFolder) -> None:
    assert first.json == {"ok": True, "run": str(run.path), **(run.record() or {})}
    assert first.out == json.dumps(first.json, ensure_ascii=False, indent=2) + "\n"


def test_what_a_person_reads_goes_to_standard_error(first: Done, run: RunFolder) -> None:
    lines = first.err.splitlines()
    assert lines[0].startswith("Model ")
    assert [line for line in lines if line.startswith(("held-out", "saved"))] == [
        f"held-out loss {loss:.2f} at step {step}"
        for step, loss in ((e["step"], e["heldout_loss"]) for e in events(run, "evaluation"))
    ] + ["saved checkpoints/checkpoint-6"]
    assert lines[-4:] == [
        f"report   {run.report_file}",
        f"chat     luthier chat {run.path}",
        f"serve    luthier serve {run.path} --base",
        f"export   luthier export {run.path} --to merged -o merged",
    ]


def test_the_files_of_a_run(run: RunFolder) -> None:
    checkpoint = {f"checkpoints/checkpoint-6/{name}" for name in CHECKPOINT}
    assert files_in(run.path) == TOP | checkpoint | {f"adapter/{name}" for name in ADAPTER}


def test_a_manifest_seals_the_checkpoint(run: RunFolder) -> None:
    folder = run.checkpoints_dir / "checkpoint-6"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    contents = {name: (folder / name).read_bytes() for name in CHECKPOINT - {"manifest.json"}}
    assert manifest == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }


def test_the_last_checkpoint_is_the_result(run: RunFolder) -> None:
    checkpoint = run.checkpoints_dir / "checkpoint-6" / "adapter_model.safetensors"
    assert adapter_bytes(run) == checkpoint.read_bytes()


def test_the_events_in_their_order(run: RunFolder) -> None:
    kinds = [(event["event"], event["step"]) for event in run.events()]
    assert kinds == [
        ("start", 0),
        ("plan", 0),
        ("evaluation", 0),
        ("sample", 0),
        ("step", 1),
        ("step", 2),
        ("evaluation", 2),
        ("sample", 2),
        ("step", 3),
        ("step", 4),
        ("evaluation", 4),
        ("sample", 4),
        ("step", 5),
        ("step", 6),
        ("evaluation", 6),
        ("sample", 6),
        ("save", 6),
        ("finish", 6),
    ]


def test_each_event_is_as_it_is_documented(run: RunFolder) -> None:
    """Those of the other tests too: conftest.py looks at every event that is written."""
    assert [differences(event) for event in run.events()] == [[]] * 18
    assert [event["time"] for event in run.events()] == sorted(event["time"] for event in run.events())
    assert events(run, "start")[0]["total_steps"] == 6
    assert events(run, "start")[0]["resumed"] is False
    assert [event["epoch"] for event in events(run, "step")] == [0.3333, 0.6667, 1.0, 1.3333, 1.6667, 2.0]


def test_each_automatic_choice_has_its_reason(run: RunFolder) -> None:
    resolved = {name: (choice.value, choice.reason) for name, choice in run.read_resolved().items()}
    fingerprint = hashlib.sha256((run.record() or {})["data"]["files"][0]["sha256"].encode()).hexdigest()[:12]
    assert resolved.pop("model.dtype")[0] == "float32"
    engine, why = resolved.pop("train.engine")
    assert engine == "flat"
    assert re.fullmatch(
        r"no padding, shared prefixes computed once, attention in blocks, "
        r"loops compiled by numba where a process has one or two threads; "
        r"the flat loss differs from the plain one by \d\.\de[-+]\d\d",
        why,
    )
    layers, why = resolved.pop("train.gradient_checkpointing")
    assert layers == 0
    assert re.fullmatch(
        r"recomputing costs a third of the time, and 128 tokens at once take about 0\.0 of [\d.]+ GB free", why
    )
    machine, why = resolved.pop("machine")
    assert "; torch 2." in machine and ", transformers 5." in machine
    assert why == "on another one the result may differ in its last bits"
    assert resolved.pop("environment.ONEDNN_PRIMITIVE_CACHE_CAPACITY")[0] == "64"
    assert resolved == {
        "model.thinking": (None, "the chat template has no thinking mode"),
        "data.max_length": (256, "the model takes no more"),
        "data.files": (fingerprint, "their fingerprint: with these files alone the run goes on"),
        "model.device": ("cpu", "the recipe asks for it"),
        "threads": (1, "OMP_NUM_THREADS is set"),
        "train.deterministic": (True, "a CPU adds in the same order each time, with the same number of threads"),
        "train.micro_batch_tokens": (1024, "more is no faster on cpu; about 0.0 GB"),
        "train.batch_size": (8, "the recipe asks for it"),
        "train.cuda_graphs": (False, "cpu has no CUDA graphs"),
        "train.cpu_processes": (1, "there is one thread"),
        "train.eval_steps": (2, "five evaluations in a run, besides the one before it"),
        "train.save_steps": (100, "the recipe asks for it"),
        "tokens of an epoch": (
            "586 / 984",
            "827 are real tokens, 29% of them shared by rows or after the last label; "
            "the layers compute 40% fewer than padded batches of 8 rows",
        ),
    }


def test_the_record(shop: Workplace, run: RunFolder) -> None:
    record = run.record() or {}
    assert set(record) == {
        "luthier",
        "model",
        "revision",
        "output",
        "environment",
        "data",
        "result",
        "plan",
        "heldout",
        "answers",
        "samples",
        "hashes",
    }
    assert (record["revision"], record["data"]["repeated"]) == (None, 0)
    assert record["hashes"] == {
        f"adapter/{name}": hashlib.sha256((run.adapter_dir / name).read_bytes()).hexdigest()
        for name in ("adapter_model.safetensors", "adapter_config.json")
    }
    assert (record["model"], record["output"]) == (str(shop.model), str(run.path))
    assert record["environment"].keys() >= {"os", "python", "cpu", "memory_bytes", "device", "dtype", "torch", "peft"}
    assert record["data"]["files"] == [
        {
            "path": str(shop.rows),
            "sha256": hashlib.sha256(shop.rows.read_bytes()).hexdigest(),
            "kind": "jsonl",
            "encoding": "utf-8",
            "format": "alpaca",
            "why": "every row has instruction and output",
            "rows": 24,
        }
    ]


def test_the_figures_of_the_result(run: RunFolder) -> None:
    result, steps = (run.record() or {})["result"], events(run, "step")
    seconds = sum(step["seconds"] for step in steps)
    heldout = [event["heldout_loss"] for event in events(run, "evaluation")]
    assert result.pop("peak_memory_bytes") >= steps[-1]["memory_bytes"]
    assert result.pop("total_seconds") > seconds
    assert result == {
        "steps": 6,
        "epochs": 2.0,
        "rows": 20,
        "seconds": seconds,
        "samples_per_second": 40 / seconds,
        "tokens_per_second": 2 * 827 / seconds,
        "real_tokens": 2 * 827,
        "computed_tokens": 2 * 586,
        "train_loss": pytest.approx(sum(losses(run)) / 6),
        "heldout_loss_before": heldout[0],
        "heldout_loss_after": heldout[-1],
        "end_probability_before": pytest.approx(0.0057, abs=1e-4),  # of two tokens among 400, by chance
        "end_probability_after": pytest.approx(0.0064, abs=1e-4),
    }
    assert heldout[-1] < heldout[0]


def test_the_ledger_accounts_for_every_row(run: RunFolder) -> None:
    ledger = (run.record() or {})["data"]["ledger"]
    assert {key: ledger[key] for key in ("read", "used", "heldout", "duplicate", "dropped", "cut", "conflicts")} == {
        "read": 24,
        "used": 20,
        "heldout": 4,
        "duplicate": 0,
        "dropped": 0,
        "cut": 0,
        "conflicts": 0,
    }
    lines = [json.loads(line) for line in run.ledger_file.read_text(encoding="utf-8").splitlines()]
    assert [line["outcome"] for line in lines] == ["heldout"] * 4


def test_the_answers_are_asked_of_the_held_out_rows(run: RunFolder) -> None:
    answers = (run.record() or {})["answers"]
    lines = [json.loads(line)["where"] for line in run.ledger_file.read_text(encoding="utf-8").splitlines()]
    rows = [PAIRS[int(where.rpartition(" ")[2]) - 1] for where in lines]
    assert [(answer["prompt"], answer["reference"], answer["system"]) for answer in answers] == [
        (question, answer, SYSTEM) for question, answer in rows
    ]


def test_each_held_out_row_is_measured_before_and_after(run: RunFolder) -> None:
    """Together they are the held-out loss; alone they are the loss of the answers quoted."""
    record = run.record() or {}
    rows = record["heldout"]["measured"]
    lines = [json.loads(line)["where"] for line in run.ledger_file.read_text(encoding="utf-8").splitlines()]
    assert record["heldout"]["rows"] == 4
    assert [row["where"] for row in rows] == lines
    assert [row["prompt"] for row in rows] == [PAIRS[int(where.rpartition(" ")[2]) - 1][0] for where in lines]
    labels = sum(row["labels"] for row in rows)
    for when in ("before", "after"):
        mean = sum(row[when] * row["labels"] for row in rows) / labels
        assert record["result"][f"heldout_loss_{when}"] == pytest.approx(mean, rel=1e-5)
    assert [answer["reference_loss"] for answer in record["answers"]] == [
        {"base": row["before"], "tuned": row["after"]} for row in rows
    ]


def test_the_first_rows_are_kept_as_tokens(run: RunFolder) -> None:
    samples = (run.record() or {})["samples"]
    for sample in samples:
        question, answer = PAIRS[int(sample["where"].rpartition(" ")[2]) - 1]
        spaced = [(text.replace("·", " ").replace("↵\n", "\n"), trained) for text, trained, _ in sample["pieces"]]
        prompt = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        assert "".join(text for text, trained in spaced if not trained) == f"{prompt}<|im_start|>assistant\n"
        assert "".join(text for text, trained in spaced if trained) == f"{answer}<|im_end|>"
        assert sum(len(ids) for _, _, ids in sample["pieces"]) == sample["tokens"]
        assert not sample["cut"]
    assert len(samples) == 3


def test_every_reason_has_its_chinese(run: RunFolder) -> None:
    reasons = {setting: choice.reason for setting, choice in run.read_resolved().items()}
    recorded = LANGUAGES["zh"].recorded
    assert [setting for setting, reason in reasons.items() if recorded(reason) == reason] == []


def test_the_report_shows_the_losses(run: RunFolder) -> None:
    result = (run.record() or {})["result"]
    page = run.report_file.read_text(encoding="utf-8")
    before, after = result["heldout_loss_before"], result["heldout_loss_after"]
    assert f"Held-out loss fell from {before:.2f} to {after:.2f}" in page


def test_the_recipe_is_kept_with_every_default(shop: Workplace, run: RunFolder) -> None:
    recipe = run.read_recipe()
    assert recipe.model_dump()["train"] == {
        "epochs": 2.0,
        "steps": None,
        "batch_size": 8,
        "batch_tokens": None,
        "gradient_accumulation_steps": "auto",
        "micro_batch_tokens": "auto",
        "learning_rate": 0.01,
        "schedule": "cosine",
        "warmup": 0.05,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_steps": 100,
        "save_total_limit": 2,
        "eval_steps": "auto",
        "early_stopping_patience": None,
        "load_best": False,
        "gradient_checkpointing": "auto",
        "offload_activations": False,
        "cuda_graphs": "auto",
        "cpu_processes": "auto",
        "engine": "auto",
        "seed": 42,
        "deterministic": False,
        "save_on_each_node": False,
    }


def test_the_same_seed_gives_the_same_bytes(shop: Workplace, run: RunFolder) -> None:
    """Here in this process, there in one of its own."""
    again = shop.train("again", train={"epochs": 2})
    assert adapter_bytes(again) == adapter_bytes(run)
    assert losses(again) == losses(run)
    assert (again.record() or {})["answers"] != []


def test_what_a_person_sees_without_json(shop: Workplace) -> None:
    """Duplicates, conflicting answers and a column that is not used are said, not passed over."""
    rows: list[dict[str, Any]] = [
        {"id": 1, "instruction": "Who are you?", "output": "A luthier."},
        {"id": 2, "instruction": "Who are you?", "output": "A luthier."},
        {"id": 3, "instruction": "Who are you?", "output": "Nobody."},
        {"id": 4, "instruction": "What wood?", "output": "Spruce."},
    ]
    file = shop.folder / "odd.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = luthier("train", shop.recipe("odd", data={"train": str(file), "holdout": 1}, train={"steps": 1}))
    assert (done.status, done.err) == (
        0,
        "note: columns that are not used: id\n"
        "note: 1 prompts have several different answers, all of them kept. "
        f"For example 'Who are you?': {file}, line 1, {file}, line 3\n",
    )
    record = shop.run("odd").record() or {}
    ledger = record["data"]["ledger"]
    assert (ledger["read"], ledger["used"], ledger["heldout"], ledger["duplicate"]) == (4, 2, 1, 1)
    assert record["result"]["steps"] == 1
    assert "1 steps in" in done.out
    assert done.out.count("Who are you?") == 0  # held out is the other row


def test_several_files_and_a_held_out_file_of_its_own(shop: Workplace) -> None:
    one = write_rows(shop.folder / "one.jsonl", PAIRS[:6])
    two = write_rows(shop.folder / "two.jsonl", PAIRS[6:10])
    own = write_rows(shop.folder / "own.jsonl", [*PAIRS[10:12], PAIRS[0]])
    run = shop.train("files", data={"train": [str(one), str(two)], "heldout": str(own)}, train={"steps": 1})
    data = (run.record() or {})["data"]
    assert [file["path"] for file in data["files"]] == [str(one), str(two), str(own)]
    ledger = data["ledger"]
    assert (ledger["read"], ledger["used"], ledger["heldout"], ledger["dropped"]) == (13, 10, 2, 1)
    assert ledger["reasons"] == {"a held-out row whose prompt is also in training": 1}
