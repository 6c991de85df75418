"""A recipe file and `--set`: every problem at once, in words that say what to type next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.errors import Problem, RecipeError
from luthier.recipe.load import load_recipe, parse_recipe
from luthier.recipe.schema import Recipe

SHORT = "model: Qwen/Qwen3-0.6B\ndata: rows.jsonl\nsystem: Be kind.\noutput: runs/kind\n"
MINIMAL: dict[str, Any] = {"model": "m", "data": "d.jsonl", "output": "o"}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *overrides: str) -> Recipe:
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    return load_recipe("recipe.yaml", overrides)


def problems(text: str, *overrides: str) -> list[tuple[str, str, str]]:
    with pytest.raises(RecipeError) as raised:
        load(text, *overrides)
    return [(problem.where, problem.what, problem.fix) for problem in raised.value.problems]


# ---------------------------------------------------------------- what is right


def test_four_lines() -> None:
    assert load(SHORT).model_dump(exclude_unset=True) == {
        "model": {"ref": "Qwen/Qwen3-0.6B"},
        "data": {"train": "rows.jsonl", "system": "Be kind."},
        "output": "runs/kind",
    }


def test_short_forms_are_sections() -> None:
    recipe = load("model: m\ndata: [a.jsonl, b.jsonl]\noutput: o\ntrack: [swanlab]\n")
    assert recipe.data.train == ["a.jsonl", "b.jsonl"]
    assert recipe.track.to == ["swanlab"]
    assert recipe == parse_recipe({**MINIMAL, "data": {"train": ["a.jsonl", "b.jsonl"]}, "track": {"to": ["swanlab"]}})


def test_a_section_left_empty_is_as_good_as_none() -> None:
    assert load(SHORT + "train:\nadapter:\nprompts:\n") == load(SHORT)
    assert load(SHORT + "train:\n", "train.epochs=1").train.epochs == 1


@pytest.mark.parametrize("written", ["1e-4", "1.0e-4", "0.0001", "1E-04", "+1e-4"])
def test_a_number_with_an_exponent_needs_no_dot(written: str) -> None:
    assert load(SHORT + f"train: {{learning_rate: {written}}}\n").train.learning_rate == 1e-4
    assert load(SHORT, f"train.learning_rate={written}").train.learning_rate == 1e-4


def test_a_byte_order_mark_is_no_key() -> None:
    Path("recipe.yaml").write_text(SHORT, encoding="utf-8-sig")
    assert load_recipe(Path("recipe.yaml")) == load(SHORT)


def test_overrides() -> None:
    recipe = load(
        SHORT, "train.epochs=0.5", "data.holdout=10%", "data.system=你好：一", "adapter.targets=[q_proj, v_proj]"
    )
    assert recipe.train.epochs == 0.5
    assert (recipe.data.holdout, recipe.data.system) == ("10%", "你好：一")
    assert recipe.adapter.targets == ["q_proj", "v_proj"]
    assert recipe.data.train == "rows.jsonl"


def test_an_override_in_short_form_changes_one_setting() -> None:
    text = "model: {ref: m, chat_template: chatml}\ndata: {train: d, system: A}\noutput: o\n"
    recipe = load(text, "model=other", "data=[a, b]", "system=B", "track=[wandb]")
    assert (recipe.model.ref, recipe.model.chat_template) == ("other", "chatml")
    assert (recipe.data.train, recipe.data.system) == (["a", "b"], "B")
    assert recipe.track.to == ["wandb"]
    assert load(SHORT, "system=B").data.system == "B"
    assert load(SHORT, "system=").data.system is None
    assert load(SHORT, "model={ref: other}").model.ref == "other"


# ---------------------------------------------------------------- what is wrong


def test_all_problems_at_once_each_with_its_fix() -> None:
    text = """\
modle: Qwen/Qwen3-0.6B
data:
  trian: rows.jsonl
  max_length: -1
adapter: {rank: 8.0, dropout: 1, targets: 5}
train: {epochs: "3", schedule: cosin, save_steps: often, seed: true, zzz: 1}
track: {to: [swanlb], cloud: "no"}
prompts: Who are you?
"""
    assert problems(text) == [
        ("recipe.yaml, model", "is missing", "add it: model: Qwen/Qwen3-0.6B"),
        ("recipe.yaml, data.train", "is missing", "add it: train: …"),
        (
            "recipe.yaml, data.max_length",
            "cannot be -1",
            "write auto or whole number > 1 "
            "(Longest conversation, in tokens. auto: what the model can take, at most 4096.)",
        ),
        ("recipe.yaml, data.trian", "is no setting", "did you mean train?"),
        ("recipe.yaml, output", "is missing", "add it: output: runs/first"),
        (
            "recipe.yaml, adapter.rank",
            "cannot be 8.0",
            "write whole number > 0 (Width of the low-rank update.)",
        ),
        (
            "recipe.yaml, adapter.dropout",
            "cannot be 1",
            "write number ≥ 0 and < 1 "
            "(Dropout on the adapter's input. Above 0 a shared prefix is computed again for every row.)",
        ),
        (
            "recipe.yaml, adapter.targets",
            "cannot be 5",
            "write text or list of text "
            "(linear: every linear layer of the language model (no vision tower, no head); or a list of layer names.)",
        ),
        ("recipe.yaml, train.epochs", "cannot be '3'", "write number > 0 (Passes over the rows.)"),
        (
            "recipe.yaml, train.schedule",
            "cannot be 'cosin'",
            "write linear or cosine or constant (How the learning rate falls after the warm-up, if at all.)",
        ),
        (
            "recipe.yaml, train.save_steps",
            "cannot be 'often'",
            "write auto or whole number > 0 "
            "(A checkpoint every so many steps. auto: ten in a run, and at most every 100 steps.)",
        ),
        (
            "recipe.yaml, train.seed",
            "cannot be True",
            "write whole number ≥ 0 and < 4,294,967,296 (Same seed, data and machine: same run.)",
        ),
        (
            "recipe.yaml, train.zzz",
            "is no setting",
            "settings here: epochs, steps, batch_size, batch_tokens, gradient_accumulation_steps, micro_batch_tokens, "
            "learning_rate, schedule, warmup, weight_decay, max_grad_norm, logging_steps, save_steps, "
            "save_total_limit, eval_steps, early_stopping_patience, load_best, gradient_checkpointing, "
            "offload_activations, cuda_graphs, cpu_processes, engine, seed, deterministic, save_on_each_node",
        ),
        (
            "recipe.yaml, track.to",
            "cannot be 'swanlb'",
            "write list of swanlab or tensorboard or wandb "
            "(Where curves are sent besides the run folder. Each is an extra: pip install luthier[swanlab].)",
        ),
        (
            "recipe.yaml, track.cloud",
            "cannot be 'no'",
            "write true or false (Send to the tracker's cloud with your account. False: files on this machine only.)",
        ),
        (
            "recipe.yaml, prompts",
            "cannot be 'Who are you?'",
            "write list of text (Questions asked before and after, besides those of held-out rows.)",
        ),
        ("recipe.yaml, modle", "is no setting", "did you mean model?"),
    ]


def test_a_section_of_the_wrong_type() -> None:
    assert problems("model: 5\ndata: d\noutput: o\ntrain: [1]\n") == [
        ("recipe.yaml, model", "cannot be 5", "write a section of settings"),
        ("recipe.yaml, train", "cannot be [1]", "write a section of settings"),
    ]


@pytest.mark.parametrize("data", ["{train: d, system: A}", "5"])
def test_a_system_prompt_that_cannot_be_put_into_data(data: str) -> None:
    found = problems(f"model: m\ndata: {data}\nsystem: B\noutput: o\n")
    assert found[-1] == ("recipe.yaml, system", "cannot be put into data", "write it once, as data.system")


def test_settings_that_contradict_each_other() -> None:
    text = """\
model: m
data: {train: d, holdout: 0}
output: o
train:
  batch_size: 4
  batch_tokens: 4096
  gradient_accumulation_steps: 8
  micro_batch_tokens: 100
  early_stopping_patience: 2
  load_best: true
  save_steps: 30
  eval_steps: 20
  warmup: 1.5
track: {cloud: true}
"""
    assert problems(text) == [
        (
            "recipe.yaml, train.batch_tokens",
            "says with batch_size twice how much a step holds",
            "leave one of the two out",
        ),
        (
            "recipe.yaml, train.gradient_accumulation_steps",
            "cuts a step of 4 rows into 8 micro-batches",
            "batch_size is the rows of a whole optimizer step: raise it, or lower gradient_accumulation_steps",
        ),
        (
            "recipe.yaml, train.gradient_accumulation_steps",
            "says with micro_batch_tokens twice how a step is cut",
            "leave one of the two at auto",
        ),
        (
            "recipe.yaml, train.early_stopping_patience",
            "needs held-out rows, and data.holdout is 0",
            "set data.holdout: 5%",
        ),
        ("recipe.yaml, train.load_best", "needs held-out rows, and data.holdout is 0", "set data.holdout: 5%"),
        (
            "recipe.yaml, train.save_steps",
            "saves every 30 steps, and load_best needs the loss of each checkpoint",
            "make it a multiple of eval_steps, 20",
        ),
        (
            "recipe.yaml, train.warmup",
            "1.5 is neither a share below 1 nor a whole number of steps",
            "write 0.05 or 100",
        ),
        ("recipe.yaml, track.cloud", "no tracker is named", "add track.to: [swanlab]"),
    ]


@pytest.mark.parametrize("holdout", ['"0"', "0%", "0"])
def test_no_held_out_rows_however_it_is_written(holdout: str) -> None:
    text = f"model: m\ndata: {{train: d, holdout: {holdout}}}\noutput: o\ntrain: {{load_best: true}}\n"
    assert [where for where, _, _ in problems(text)] == ["recipe.yaml, train.load_best"]
    assert load(text, "data.heldout=other.jsonl").train.load_best


def test_overrides_that_are_wrong_are_named_beside_the_recipes_own_problems() -> None:
    found = problems(
        SHORT + "epochs: 3\n", "foo", "=3", "train.epochs.x=3", "train.warmup=[", "output.name=x", "train.rank=4"
    )
    assert found == [
        ("--set foo", "is not of the form setting=value", "write it as --set train.epochs=1"),
        ("--set =3", "is not of the form setting=value", "write it as --set train.epochs=1"),
        ("--set train.warmup=[", "the value is not YAML", "put it in quotes: --set 'data.system=\"text\"'"),
        ("--set output.name=x", "'output' is one value, not a section", "see docs/recipe.md"),
        ("recipe.yaml, train.epochs", "cannot be {'x': 3}", "write number > 0 (Passes over the rows.)"),
        (
            "recipe.yaml, train.rank",
            "is no setting",
            "did you mean adapter.rank?",
        ),
        ("recipe.yaml, epochs", "is no setting", "did you mean train.epochs?"),
    ]


def test_settings_given_as_a_dict() -> None:
    assert parse_recipe(MINIMAL).train.batch_size == "auto"
    with pytest.raises(RecipeError) as raised:
        parse_recipe({**MINIMAL, "train": {"batch_size": 0}})
    assert raised.value.problems == (
        Problem(
            "recipe, train.batch_size",
            "cannot be 0",
            "write auto or whole number > 0 (Rows in one optimizer step, on all devices together. auto: 16, unless "
            "batch_tokens says it.)",
        ),
    )


# ---------------------------------------------------------------- files


def test_a_missing_file_names_those_beside_it() -> None:
    Path("first.yaml").write_text(SHORT, encoding="utf-8")
    Path("second.yml").write_text(SHORT, encoding="utf-8")
    Path("rows.jsonl").write_text("{}", encoding="utf-8")
    with pytest.raises(RecipeError) as raised:
        load_recipe("recipe.yaml")
    assert raised.value.problems == (
        Problem(
            "recipe.yaml",
            "cannot be read (No such file or directory)",
            "recipes in that folder: first.yaml, second.yml",
        ),
    )


def test_a_missing_file_in_an_empty_folder() -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe("nowhere/recipe.yaml")
    assert raised.value.problems[0].fix == "check the path; recipes/ has complete ones"


@pytest.mark.parametrize(
    ("content", "where", "what", "fix"),
    [
        (b"", "recipe.yaml", "holds no settings", "compare with recipes/minimal.yaml"),
        (b"- a\n", "recipe.yaml", "holds no settings", "compare with recipes/minimal.yaml"),
        (
            b"model: m\ndata: [a\noutput: o\n",
            "recipe.yaml, line 3",
            "expected ',' or ']', but got ':'",
            "compare with recipes/minimal.yaml",
        ),
        (b"model: m\nmodel: n\n", "recipe.yaml, line 2", "model is given twice", "compare with recipes/minimal.yaml"),
        (
            b"train:\n  epochs: 1\n  epochs: 2\n",
            "recipe.yaml, line 3",
            "epochs is given twice",
            "compare with recipes/minimal.yaml",
        ),
        ("model: 你".encode("gbk"), "recipe.yaml", "is not UTF-8 text", "save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_recipe(content: bytes, where: str, what: str, fix: str) -> None:
    Path("recipe.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as raised:
        load_recipe("recipe.yaml")
    assert raised.value.problems == (Problem(where, what, fix),)
