"""What one does with a run: eval, chat, merge, runs, report; and with rows and models: data, fetch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from driver import PAIRS, SYSTEM, Workplace, events, files_in, luthier
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.report.record import RunFolder

QUESTION, LEARNED = PAIRS[0]


@pytest.fixture(scope="module")
def run(shop: Workplace) -> RunFolder:
    """Trained until it knows its 20 rows by heart."""
    train = {"steps": 60, "batch_size": 20, "learning_rate": 0.02, "eval_steps": 60}
    return shop.train("after", adapter={"rank": 16, "alpha": 32}, train=train)


@pytest.fixture(scope="module")
def merged(shop: Workplace, run: RunFolder) -> Path:
    folder = shop.folder / "merged" / "full"
    done = luthier("merge", run.path, "-o", folder, "--json")
    assert done.status == 0, done.err
    (shop.folder / "merge.json").write_text(done.out, encoding="utf-8")
    return folder


ASKED = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]


def prompt(tokenizer: Any, messages: list[dict[str, str]] = ASKED) -> torch.Tensor:
    return torch.tensor([tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]])


def plain_answer(model: Any, tokenizer: Any, messages: list[dict[str, str]] = ASKED) -> str:
    """The greedy answer by transformers alone."""
    ids = prompt(tokenizer, messages)
    with torch.no_grad():
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def ask(ref: Path, *arguments: object) -> dict[str, Any]:
    done = luthier("chat", ref, "--prompt", QUESTION, "--max-new-tokens", 40, "--json", *arguments)
    assert done.status == 0, done.err
    answer: dict[str, Any] = done.json
    return answer


# eval


def test_eval_measures_both_models_on_the_held_out_rows(run: RunFolder) -> None:
    done = luthier("eval", run.path, "--json")
    found, record = done.json, run.record() or {}
    assert done.status == 0
    assert found.keys() == {"ok", "run", "rows", "labels", "base", "tuned", "answers"}
    assert (found["ok"], found["run"], found["rows"]) == (True, str(run.path), 4)
    before, after = (record["result"][f"heldout_loss_{when}"] for when in ("before", "after"))
    assert found["base"]["loss"] == pytest.approx(before, rel=1e-5)
    assert found["tuned"]["loss"] == pytest.approx(after, rel=1e-5)
    assert [found[name]["perplexity"] for name in ("base", "tuned")] == [
        math.exp(found[name]["loss"]) for name in ("base", "tuned")
    ]
    assert found["answers"] == [
        {**answer, "reference_loss": pytest.approx(answer["reference_loss"], rel=1e-5)} for answer in record["answers"]
    ]
    assert [answer["base"] == answer["tuned"] for answer in found["answers"]] == [False] * 4
    kept = json.loads(run.evaluation_file.read_text(encoding="utf-8"))
    assert kept == {key: found[key] for key in found if key not in ("ok", "run")}


def test_eval_for_a_person(run: RunFolder) -> None:
    done = luthier("eval", run.path)
    result = (run.record() or {})["result"]
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("Loss of 4 held-out rows …\nAnswers of both models …\nAnswers\n")
    assert f"│ base  │ {result['heldout_loss_before']:.4f} " in done.out
    assert f"│ tuned │ {result['heldout_loss_after']:.4f} " in done.out
    assert done.out.endswith(f"kept in  {run.evaluation_file}\n")


def test_eval_without_held_out_rows(shop: Workplace) -> None:
    run = shop.train("no-heldout", data={"holdout": 0}, train={"steps": 1})
    done = luthier("eval", run.path)
    assert (done.status, done.err) == (
        2,
        f"✗ {run.path}: no rows were held out\n"
        "  → train with data.holdout: 5% (the default) to have rows that were never trained\n",
    )


def test_eval_of_rows_that_have_changed(shop: Workplace, run: RunFolder) -> None:
    rows = shop.rows.read_bytes()
    try:
        shop.rows.write_bytes(rows + rows.splitlines(keepends=True)[0].replace(b"Who", b"What"))
        done = luthier("eval", run.path)
    finally:
        shop.rows.write_bytes(rows)
    assert (done.status, done.err) == (
        2,
        f"✗ {run.path}: the data files have changed since this run began, so which rows it held out is no longer known"
        "\n  → put them back as they were, or train again: luthier train RECIPE --fresh\n",
    )


def test_a_run_without_a_result(shop: Workplace) -> None:
    run = shop.run("young").create()
    run.write_recipe(shop_recipe(shop))
    start = {"schema": 1, "total_steps": 9, "resumed": False, "flops_per_second": None}
    run.log({"event": "start", "step": 0, **start})
    run.log({"event": "stop", "step": 4, "reason": "Ctrl-C"})
    for command in (("eval", run.path), ("chat", run.path, "-p", "?"), ("merge", run.path, "-o", shop.folder / "no")):
        done = luthier(*command)
        assert (done.status, done.out) == (2, "")
        assert done.err == (
            f"✗ {run.path}: has no result yet (stopped at step 4)\n"
            "  → finish it first: the same luthier train command goes on from its last checkpoint\n"
        )


def shop_recipe(shop: Workplace) -> Any:
    from luthier.recipe.load import parse_recipe

    return parse_recipe(shop.settings("young"))


@pytest.mark.parametrize("command", [("eval",), ("merge", "-o", "x"), ("report",)])
def test_a_folder_that_is_no_run(shop: Workplace, run: RunFolder, command: tuple[str, ...]) -> None:
    missing = shop.folder / "elsewhere" / "run"
    done = luthier(*command, missing)
    assert (done.status, done.out) == (2, "")
    assert done.err == f"✗ {missing}: there is no run here (no recipe.yaml)\n  → train one: luthier train\n"


# chat


def test_one_answer(run: RunFolder) -> None:
    assert ask(run.path) == {"ok": True, "prompt": QUESTION, "system": SYSTEM, "tuned": LEARNED}
    done = luthier("chat", run.path, "-p", QUESTION)
    assert (done.status, done.out, done.err) == (0, f"{LEARNED}\n", "")


def test_compare(run: RunFolder, shop: Workplace) -> None:
    answer = ask(run.path, "--compare")
    base = AutoModelForCausalLM.from_pretrained(shop.model).eval()
    assert answer["tuned"] == LEARNED
    assert answer["base"] == plain_answer(base, AutoTokenizer.from_pretrained(shop.model)) != LEARNED
    done = luthier("chat", run.path, "-p", QUESTION, "--max-new-tokens", 40, "--compare")
    assert done.out.startswith("base\n")
    assert done.out.endswith(f"\ntuned\n{LEARNED}\n")


def test_another_system_prompt(run: RunFolder) -> None:
    assert ask(run.path, "--system", "")["system"] == ""
    assert ask(run.path, "--system", "Be brief.")["tuned"] != ask(run.path)["tuned"]


def test_a_plain_model(shop: Workplace) -> None:
    answer = ask(shop.model)
    assert (set(answer), answer["system"]) == ({"ok", "prompt", "system", "answer"}, None)
    done = luthier("chat", shop.model, "-p", QUESTION, "--compare")
    assert (done.status, done.err) == (
        2,
        f"✗ {shop.model}: is a plain model: there is nothing to compare it with\n  → name a run's folder\n",
    )


def test_a_conversation_remembers_what_was_said_until_reset(run: RunFolder, merged: Path) -> None:
    done = luthier("chat", run.path, "--max-new-tokens", 40, typed=f"{QUESTION}\n\nMore?\n/reset\n{QUESTION}\n")
    assert (done.status, done.err) == (0, "")
    hint, first, empty, second, reset, third, end = done.out.split("› ")
    assert hint == "Ctrl-D ends, Ctrl-C stops an answer, /reset begins anew.\n"
    assert first == third == f"{LEARNED}\n"
    assert (empty, reset, end) == ("", "", "\n")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged).eval(), AutoTokenizer.from_pretrained(merged)
    said = [*ASKED, {"role": "assistant", "content": LEARNED}, {"role": "user", "content": "More?"}]
    assert second.strip() == plain_answer(model, tokenizer, said)


def test_json_needs_a_prompt(run: RunFolder) -> None:
    done = luthier("chat", run.path, "--json")
    assert (done.status, done.out) == (2, "")
    assert "--json needs --prompt" in done.err


# merge


def test_what_merge_says(shop: Workplace, merged: Path) -> None:
    found = json.loads((shop.folder / "merge.json").read_text(encoding="utf-8"))
    assert 0 < found.pop("difference") < 1e-4
    assert found == {
        "ok": True,
        "path": str(merged),
        "dtype": "float32",
        "why": "the base is published in it",
        "agreement": 1.0,
        "prompts": 4,
        "bound": 0.001,
    }


def test_a_merged_model_is_an_ordinary_folder(merged: Path) -> None:
    assert files_in(merged) == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "luthier.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [path.name for path in merged.parent.iterdir()] == ["full"]  # nothing half-made beside it
    model = AutoModelForCausalLM.from_pretrained(merged).eval()
    assert plain_answer(model, AutoTokenizer.from_pretrained(merged)) == LEARNED
    assert ask(merged) == {"ok": True, "prompt": QUESTION, "system": SYSTEM, "answer": LEARNED}


def test_the_adapter_loads_with_plain_peft(shop: Workplace, run: RunFolder, merged: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run.adapter_dir)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(shop.model), run.adapter_dir).eval()
    whole, base = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (merged, shop.model))
    with torch.no_grad():
        expected, found, untuned = (model(prompt(tokenizer)).logits for model in (tuned, whole, base))
    assert plain_answer(tuned, tokenizer) == LEARNED
    assert float((found - expected).abs().max()) < 1e-4
    assert float((untuned - expected).abs().max()) > 0.1


def test_merge_refuses_a_folder_with_files(run: RunFolder, merged: Path) -> None:
    before = {name: (merged / name).stat().st_mtime_ns for name in files_in(merged)}
    done = luthier("merge", run.path, "-o", merged)
    assert (done.status, done.err) == (2, f"✗ {merged}: is not empty\n  → name another folder: -o DIR\n")
    assert {name: (merged / name).stat().st_mtime_ns for name in files_in(merged)} == before


def test_merge_into_an_empty_folder_and_another_dtype(shop: Workplace, run: RunFolder) -> None:
    folder = shop.folder / "empty"
    folder.mkdir()
    done = luthier("merge", run.path, "-o", folder, "--dtype", "bfloat16")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "saved in bfloat16: asked for"
    assert "(bfloat16 allows 1)" in lines[1]
    assert lines[2:] == [f"merged   {folder}", f"chat     luthier chat {folder}"]
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
    wrong = luthier("merge", run.path, "-o", shop.folder / "int8", "--dtype", "int8")
    assert wrong.status == 2
    assert "'int8' is not float32, bfloat16 or float16" in wrong.err


def test_a_merge_that_changes_the_answers_fails(
    shop: Workplace, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("luthier.export.merge").export.merge.BOUND, "bfloat16", 1e-6)
    folder = shop.folder / "coarse"
    done = luthier("merge", run.path, "-o", folder, "--dtype", "bfloat16")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"✗ {folder}: merged logits differ by up to 0.")
    assert done.err.endswith(", and bfloat16 allows 1e-06\n  → leave --dtype out, or use the adapter as it is\n")
    assert not folder.exists()
    assert not list(shop.folder.glob(".coarse*"))


def test_a_diverged_run(shop: Workplace) -> None:
    train = {"steps": 2, "learning_rate": 1e30, "warmup": 0, "schedule": "constant"}
    run, recipe = shop.run("diverged-after"), shop.recipe("diverged-after", train=train)
    assert luthier("train", recipe).status == 0
    assert [event["step"] for event in events(run, "skip")] == [2]
    done = luthier("merge", run.path, "-o", shop.folder / "diverged")
    assert (done.status, done.err) == (
        1,
        f"✗ {run.path}: the adapter's own logits are not numbers: its training diverged\n"
        "  → train again with a lower train.learning_rate\n",
    )
    assert not (shop.folder / "diverged").exists()
    found = luthier("eval", run.path, "--json").json
    assert found["tuned"] == {"loss": None, "perplexity": None}


# runs, report


def test_runs_and_report(shop: Workplace, run: RunFolder) -> None:
    listed = {facts["run"]: facts for facts in luthier("runs", shop.folder / "runs", "--json").json["runs"]}
    result = (run.record() or {})["result"]
    assert listed["after"] == {
        "run": "after",
        "path": str(run.path),
        "model": str(shop.model),
        "rows": 20,
        "heldout_loss_before": result["heldout_loss_before"],
        "heldout_loss_after": result["heldout_loss_after"],
        "seconds": result["seconds"],
        "state": "finished",
    }
    before = run.report_file.read_bytes()
    run.report_file.unlink()
    assert luthier("report", run.path).out == f"Open it in a browser: {run.report_file.resolve().as_uri()}\n"
    assert run.report_file.read_bytes() == before


# data, fetch


def test_data(shop: Workplace) -> None:
    page = shop.folder / "page.html"
    done = luthier("data", shop.rows, "-m", shop.model, "--system", SYSTEM, "--html", page, "--rows", 1, "--json")
    assert done.status == 0, done.err
    found = done.json
    facts = {"schema", "findings", "scripts", "characters", "ledger", "lengths", "roles", "prefix"}
    assert found.keys() == {"ok", "files", *facts}
    assert [(file["path"], file["format"], file["rows"]) for file in found["files"]] == [(str(shop.rows), "alpaca", 24)]
    assert [found["ledger"][key] for key in ("read", "used", "heldout")] == [24, 23, 1]
    assert "«I·make·violins·in·Cremona.<|im_end|>»" in done.err
    text = page.read_text(encoding="utf-8")
    assert all(answer.split()[0] in text for _, answer in PAIRS[:1])
    assert "<script" not in text


def test_data_is_tokenised_once(shop: Workplace) -> None:
    """A second look at the same rows takes them from the cache."""
    arguments = ("data", shop.rows, "-m", shop.model, "--system", "Once.")
    assert "Rendering rows …\n" in luthier(*arguments).out
    assert "Rendering rows" not in luthier(*arguments).out


def test_data_with_a_wrong_setting(shop: Workplace) -> None:
    done = luthier("data", shop.rows, "-m", shop.model, "--format", "alpace", "--set", "data.too_lon=drop")
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        "✗ luthier data, data.format: cannot be 'alpace'\n"
        "  → write auto or alpaca or sharegpt or messages or prompt_completion or text "
        "(What a row looks like. auto: recognised from its columns.)\n"
        "✗ luthier data, data.too_lon: is no setting\n  → did you mean too_long?\n"
    )


def test_fetch_of_what_is_here(shop: Workplace) -> None:
    model = luthier("fetch", shop.model, "--json")
    assert model.json == {
        "ok": True,
        "ref": str(shop.model),
        "path": str(shop.model),
        "hub": "local",
        "revision": None,
    }
    assert luthier("fetch", shop.rows, "--data").out == f"{shop.rows}\n"
