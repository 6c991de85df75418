"""Recipes with mistakes, and recipes from strangers: what each is told. `WHERE` is the recipe's path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from driver import luthier

from luthier.recipe.schema import TrainSettings

GOOD = "model: no/such/model\ndata: no/such/rows.jsonl\noutput: OUTPUT\n"
COMPARE = "compare with recipes/minimal.yaml"
SECTIONS = "model, data, output, adapter, train, track, prompts"
TRAIN = f"settings here: {', '.join(TrainSettings.model_fields)}"
SYSTEM = "write text or null (System prompt put before every conversation that has none of its own.)"
EPOCHS = "write number > 0 (Passes over the rows.)"
CHARACTER = "holds NUL, half a character (a lone surrogate) or U+FDD0"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{'abcdefghi'[i + 1]}: &{'abcdefghi'[i + 1]} [{', '.join(['*' + 'abcdefghi'[i]] * 9)}]\n" for i in range(8)
)

REFUSED: dict[str, tuple[str | bytes, list[tuple[str, str]]]] = {
    "empty": ("", [("WHERE: holds no settings", COMPARE)]),
    "an unknown key": (
        GOOD + "train: {learning_rte: 1e-4}\nsead: 5\n",
        [
            ("WHERE, train.learning_rte: is no setting", "did you mean learning_rate?"),
            ("WHERE, sead: is no setting", "did you mean train.seed?"),
        ],
    ),
    "keys that are no names": (
        GOOD + "2: x\ntrain: {null: 1, on: 2}\n",
        [
            ("WHERE, train.None: is no setting", TRAIN),
            ("WHERE, train.1: is no setting", TRAIN),
            ("WHERE, 2: is no setting", f"settings here: {SECTIONS}"),
        ],
    ),
    "a key that no file can hold": (
        GOOD + '"\\ud800": x\n',
        [("WHERE: a key holds half a character (a lone surrogate)", "delete that character")],
    ),
    "wrong types": (
        GOOD + 'train: {learning_rate: abc, epochs: "3", batch_size: 2.5, load_best: 1}\nprompts: Hi\n',
        [
            (
                "WHERE, train.epochs: cannot be '3'",
                EPOCHS,
            ),
            (
                "WHERE, train.batch_size: cannot be 2.5",
                "write auto or whole number > 0 (Rows in one optimizer step, on all devices together. auto: 16, unless "
                "batch_tokens says it.)",
            ),
            (
                "WHERE, train.learning_rate: cannot be 'abc'",
                "write number > 0 (Size of a step at its highest. Small models and few rows take more.)",
            ),
            (
                "WHERE, train.load_best: cannot be 1",
                "write true or false (Keep the checkpoint with the lowest held-out loss as the result, "
                "not the last one.)",
            ),
            (
                "WHERE, prompts: cannot be 'Hi'",
                "write list of text (Questions asked before and after, besides those of held-out rows.)",
            ),
        ],
    ),
    "fewer than no epochs": (GOOD + "train: {epochs: -3}\n", [("WHERE, train.epochs: cannot be -3", EPOCHS)]),
    "epochs without end": (GOOD + "train: {epochs: .inf}\n", [("WHERE, train.epochs: cannot be inf", EPOCHS)]),
    "a seed that no generator takes": (
        GOOD + "train: {seed: -5}\n",
        [
            (
                "WHERE, train.seed: cannot be -5",
                "write whole number ≥ 0 and < 4,294,967,296 (Same seed, data and machine: same run.)",
            )
        ],
    ),
    "a number of 5,000 digits": (
        GOOD + f"train: {{seed: {'9' * 5000}}}\n",
        [("WHERE, line 4: no such value", COMPARE)],
    ),
    **{
        f"a value that is not what its tag says, {tag}": (
            GOOD + f"system: {tag}\n",
            [(f"WHERE, line 4: {what}", COMPARE)],
        )
        for tag, what in {
            "!!bool x": "no such value",
            '!!int ""': "no such value",
            '!!float "+"': "no such value",
            "!!timestamp x": "no such value",
            "!!set [x]": "expected a mapping node, but found sequence",
            "!!map [x]": "expected a mapping node, but found sequence",
        }.items()
    },
    "a date that does not exist": (GOOD + "system: 2024-13-45\n", [("WHERE, line 4: no such value", COMPARE)]),
    "settings that contradict": (
        GOOD + "train: {load_best: true, batch_size: 4, gradient_accumulation_steps: 8}\ndata: {holdout: 0}\n",
        [("WHERE, line 5: data is given twice", COMPARE)],
    ),
    "characters that no file can hold": (
        GOOD + 'system: "a\\0b"\nprompts: ["a\\ud800", "fine"]\nadapter: {targets: ["a\ufdd0"]}\n',
        [
            ("WHERE, data.system: " + CHARACTER, "delete that character"),
            ("WHERE, adapter.targets: " + CHARACTER, "delete that character"),
            ("WHERE, prompts: " + CHARACTER, "delete that character"),
        ],
    ),
    "another encoding": ("model: 你好".encode("gbk"), [("WHERE: is not UTF-8 text", "save it as UTF-8")]),
    "a control character": (b"model: \x01\n", [("WHERE: not YAML", COMPARE)]),
    "larger than any recipe": (
        "#" * 2_000_000,
        [("WHERE: has 2.0 MB: that is no recipe", "to look at data: luthier data recipe.yaml -m MODEL")],
    ),
    # From strangers.
    "a Python object": (
        GOOD + "x: !!python/object/apply:os.system [touch OUTPUT]\n",
        [
            (
                "WHERE, line 4: could not determine a constructor for the tag "
                "'tag:yaml.org,2002:python/object/apply:os.system'",
                COMPARE,
            )
        ],
    ),
    "aliases that grow without end": (
        BOMB + GOOD,
        [("WHERE, line 6: with its aliases written out it holds more than 100,000 values", COMPARE)],
    ),
    "an alias inside of itself": (
        "prompts: &x [*x]\n" + GOOD,
        [("WHERE, line 1: an alias stands inside of what it names", COMPARE)],
    ),
    "lists in lists without end": (
        "x: " + "[" * 5000 + "]" * 5000 + "\n" + GOOD,
        [("WHERE, line 1: it nests more than 20 levels deep", COMPARE)],
    ),
    "a long value": (
        GOOD + f"train: {{epochs: {'x' * 100_000}}}\n",
        [(f"WHERE, train.epochs: cannot be '{'x' * 97}...{'x' * 98}'", EPOCHS)],
    ),
    "thousands of unknown keys": (
        GOOD + "".join(f"zz{i}: 1\n" for i in range(3000)),
        [
            *((f"WHERE, zz{i}: is no setting", f"settings here: {SECTIONS}") for i in range(20)),
            ("WHERE: 2,980 more problems like these", "correct those above first"),
        ],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_recipe_that_is_refused(tmp_path: Path, name: str) -> None:
    """Before model or data are looked for; nothing is written."""
    content, complaints = REFUSED[name]
    file, output = tmp_path / "recipe.yaml", tmp_path / "run"
    raw = content.replace("OUTPUT", output.as_posix()).encode() if isinstance(content, str) else content
    file.write_bytes(raw)
    done = luthier("train", file)
    expected = "".join(f"✗ {what}\n  → {fix}\n" for what, fix in complaints).replace("WHERE", str(file))
    assert (done.status, done.out, done.err) == (2, "", expected)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("output=", ("WHERE, output: is missing", "add it: output: runs/first")),
        ('output="a\\0b"', ("WHERE, output: " + CHARACTER, "delete that character")),
        ('model.ref="a\\ud800"', ("WHERE, model.ref: " + CHARACTER, "delete that character")),
        (
            "train.epochs=[",
            ("--set train.epochs=[: the value is not YAML", "put it in quotes: --set 'data.system=\"text\"'"),
        ),
        (
            f"train.seed={'9' * 5000}",
            (f"--set train.seed={'9' * 5000}: the value is not YAML", "put it in quotes: --set 'data.system=\"text\"'"),
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_override_that_is_refused(tmp_path: Path, override: str, complaint: Any) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(GOOD.replace("OUTPUT", (tmp_path / "run").as_posix()), encoding="utf-8")
    what, fix = complaint
    done = luthier("train", file, "--set", override)
    assert (done.status, done.err) == (2, f"✗ {what}\n  → {fix}\n".replace("WHERE", str(file)))


def test_a_folder_in_place_of_a_recipe(tmp_path: Path) -> None:
    done = luthier("train", tmp_path)
    assert (done.status, done.err) == (
        2,
        f"✗ {tmp_path}: cannot be read (Is a directory)\n  → check the path; recipes/ has complete ones\n",
    )
