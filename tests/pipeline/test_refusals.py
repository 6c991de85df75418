"""What cannot be trained is refused before the first step: all at once, by name, with what to do, leaving no trace."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from driver import PAIRS, Done, Workplace, files_in, luthier, write_rows


def refused(shop: Workplace, name: str, *arguments: object, **settings: Any) -> Done:
    """Exit status 2, no traceback, and a folder that holds nothing of a run."""
    done = luthier("train", shop.recipe(name, **settings), *arguments)
    assert done.status == 2
    assert "Traceback" not in done.out + done.err
    assert files_in(shop.run(name).path) <= {"run.lock"}
    return done


def problems(*each: tuple[str, str]) -> str:
    return "".join(f"✗ {problem}\n  → {fix}\n" for problem, fix in each)


def test_every_wrong_setting_at_once(shop: Workplace) -> None:
    done = refused(shop, "keys", "--set", "train.epochs", train={"learning_rat": 1, "batch_size": "many"}, ouput="x")
    recipe = shop.folder / "keys.yaml"
    assert done.out == ""
    assert done.err == problems(
        ("--set train.epochs: is not of the form setting=value", "write it as --set train.epochs=1"),
        (
            f"{recipe}, train.batch_size: cannot be 'many'",
            "write auto or whole number > 0 (Rows in one optimizer step, on all devices together. auto: 16, unless "
            "batch_tokens says it.)",
        ),
        (f"{recipe}, train.learning_rat: is no setting", "did you mean learning_rate?"),
        (f"{recipe}, ouput: is no setting", "did you mean output?"),
    )


def test_every_contradiction_at_once(shop: Workplace) -> None:
    done = refused(
        shop,
        "contradictions",
        data={"holdout": 0},
        train={
            "gradient_accumulation_steps": 9,
            "micro_batch_tokens": 5,
            "warmup": 1.5,
            "load_best": True,
            "early_stopping_patience": 2,
            "save_steps": 3,
            "eval_steps": 2,
        },
        track={"cloud": True},
    )
    recipe = shop.folder / "contradictions.yaml"
    holdout = ("needs held-out rows, and data.holdout is 0", "set data.holdout: 5%")
    assert done.err == problems(
        (
            f"{recipe}, train.gradient_accumulation_steps: cuts a step of 8 rows into 9 micro-batches",
            "batch_size is the rows of a whole optimizer step: raise it, or lower gradient_accumulation_steps",
        ),
        (
            f"{recipe}, train.gradient_accumulation_steps: says with micro_batch_tokens twice how a step is cut",
            "leave one of the two at auto",
        ),
        (f"{recipe}, train.early_stopping_patience: {holdout[0]}", holdout[1]),
        (f"{recipe}, train.load_best: {holdout[0]}", holdout[1]),
        (
            f"{recipe}, train.save_steps: saves every 3 steps, and load_best needs the loss of each checkpoint",
            "make it a multiple of eval_steps, 2",
        ),
        (f"{recipe}, train.warmup: 1.5 is neither a share below 1 nor a whole number of steps", "write 0.05 or 100"),
        (f"{recipe}, track.cloud: no tracker is named", "add track.to: [swanlab]"),
    )


def test_a_recipe_that_is_not_there_or_no_yaml(tmp_path: Path) -> None:
    near, wrong = tmp_path / "near.yaml", tmp_path / "wrong.yaml"
    assert luthier("train", near).err == problems(
        (f"{near}: cannot be read (No such file or directory)", "check the path; recipes/ has complete ones")
    )
    wrong.write_text("model: [\n", encoding="utf-8")
    done = luthier("train", wrong)
    assert done.status == 2
    assert done.err == problems(
        (f"{wrong}, line 2: expected the node content, but found '<stream end>'", "compare with recipes/minimal.yaml")
    )
    assert luthier("train", near).err == problems(
        (f"{near}: cannot be read (No such file or directory)", "recipes in that folder: wrong.yaml")
    )


def test_no_recipe_named() -> None:
    done = luthier("train")
    assert (done.status, done.out) == (2, "")
    assert "name a recipe: luthier train recipes/minimal.yaml" in done.err


def test_missing_model_data_and_tracker_are_named_together(shop: Workplace) -> None:
    with mock.patch("importlib.util.find_spec", lambda name: None):
        done = refused(
            shop,
            "missing",
            model={"ref": "no/such/model"},
            data={"train": [str(shop.rows), "no/such/rows.jsonl"], "heldout": "no/such/others.csv"},
            track=["wandb"],
        )
    assert done.out == ""
    lines = done.err.splitlines()
    assert lines[0] == "✗ track.to: W&B is not installed"
    assert lines[1].endswith(" -m pip install wandb")
    assert "\n".join(lines[2:]) + "\n" == problems(
        (
            "no/such/model: there is no such file or folder",
            "a hub's model is written `owner/name`, the bundled one bundled:smollm2-135m-instruct",
        ),
        ("no/such/rows.jsonl: there is no such file or folder", "give the path of a file"),
        ("no/such/others.csv: there is no such file or folder", "give the path of a file"),
    )


def test_bad_rows_are_all_named(shop: Workplace) -> None:
    file = shop.folder / "bad.jsonl"
    lines = ['{"instruction": "a", "output": "b"}', '{"instruction": "c"}', '{"instruction": "d", "output": 5}']
    file.write_text("\n".join(lines), encoding="utf-8")
    done = refused(shop, "bad-rows", data={"train": str(file)})
    assert done.err == problems(
        (f"{file}, line 2: has no `output`", "add `output`, or delete the row"),
        (f"{file}, line 3: `output` is the number 5, not text", "write it as text, or delete the row"),
    )


def test_a_broken_line(shop: Workplace) -> None:
    file = shop.folder / "broken.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"\n', encoding="utf-8")
    assert refused(shop, "broken", data={"train": str(file)}).err == problems(
        (
            f"{file}, line 2: not valid JSON at column 20: Expecting ',' delimiter",
            "correct the line or delete it (each line is one whole object)",
        )
    )


def test_rows_that_are_too_long(shop: Workplace) -> None:
    done = refused(shop, "long", data={"max_length": 48, "too_long": "error"})
    fix = "raise data.max_length, shorten the row, or set data.too_long: drop or cut_prompt"
    assert done.err == problems(
        (f"{shop.rows}, line 9: longer than 48 tokens (54)", fix),
        (f"{shop.rows}, line 21: longer than 48 tokens (49)", fix),
    )
    assert refused(shop, "all-long", data={"max_length": 5}).err == problems(
        (
            f"{shop.rows}: no row is left to train on (24 of 24: longer than 5 tokens)",
            "raise data.max_length, or set data.too_long: cut_prompt; line 1 has 29 tokens",
        )
    )
    assert refused(shop, "longest", data={"max_length": 257}).err == problems(
        ("data.max_length: 257 tokens, and the model takes 256", "set it to 256 or less")
    )


def test_nothing_left_to_hold_out(shop: Workplace) -> None:
    """A held-out file whose prompts are all in training."""
    done = refused(shop, "seen", data={"heldout": str(shop.rows)}, train={"load_best": True})
    assert done.err == problems(
        ("train.load_best: needs held-out rows, and none is left", "the ledger above says what became of the rows")
    )
    assert "a held-out row whose prompt is also in training" in done.out


def test_wrong_targets(shop: Workplace) -> None:
    known = "It has: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    assert refused(shop, "targets", adapter={"targets": ["q_pro", "xyz"]}).err == problems(
        ("adapter.targets: q_pro: the model has no such layer", f"did you mean q_proj? {known}"),
        ("adapter.targets: xyz: the model has no such layer", known),
    )


def test_a_device_that_is_not_there(shop: Workplace) -> None:
    with mock.patch("luthier.hardware.compute.measure_rate", lambda device, dtype: "no such device"):
        done = refused(shop, "device", model={"device": "mps"})
    assert done.err == problems(
        (
            f"model.device: mps cannot compute with torch {torch.__version__}: no such device",
            "use model.device: auto, and see: luthier doctor",
        )
    )


# Models.


@pytest.fixture
def spoilt(shop: Workplace, request: pytest.FixtureRequest) -> Path:
    folder = shop.folder / "models" / request.node.name
    shutil.copytree(shop.model, folder)
    return folder


def test_no_chat_template(shop: Workplace, spoilt: Path) -> None:
    (spoilt / "chat_template.jinja").unlink()
    done = refused(shop, "no-template", model={"ref": str(spoilt)})
    assert done.err == problems(
        (
            f"{spoilt}: the tokenizer has no chat template, so it does not say how a conversation is written",
            "name one we ship (model.chat_template: chatml or instruction-response), or a Jinja file",
        )
    )
    run = shop.train("no-template", model={"ref": str(spoilt), "chat_template": "chatml"}, train={"steps": 1})
    assert run.state() == "finished"


def test_pickled_weights(shop: Workplace, spoilt: Path) -> None:
    (spoilt / "model.safetensors").rename(spoilt / "pytorch_model.bin")
    assert refused(shop, "pickled", model={"ref": str(spoilt)}).err == problems(
        (
            f"{spoilt}: holds only pickled weights (pytorch_model.bin), which can run code",
            "use a model published as safetensors",
        )
    )


def test_damaged_weights(shop: Workplace, spoilt: Path) -> None:
    (spoilt / "model.safetensors").write_bytes(b"not weights")
    done = refused(shop, "damaged", model={"ref": str(spoilt)})
    file = spoilt / "model.safetensors"
    assert done.err == problems(
        (f"{file}: is damaged: its header does not fit into its 11 bytes", "fetch or copy it again")
    )


def test_thinking_that_the_template_does_not_know(shop: Workplace) -> None:
    assert refused(shop, "thinking", model={"thinking": True}).err == problems(
        ("model.thinking: true: the chat template knows no enable_thinking", "leave model.thinking out")
    )


# Where the run goes.


def test_an_output_that_is_a_file_or_lies_in_one(shop: Workplace) -> None:
    file = shop.folder / "file"
    file.write_text("kept", encoding="utf-8")
    for output, reason in ((file, "File exists"), (file / "run", "Not a directory")):
        done = luthier("train", shop.recipe("into-a-file"), "--set", f"output={output}")
        fix = f"give the run a folder of its own: --set output={output}-2"
        assert (done.status, done.err) == (2, problems((f"{output}: the folder cannot be made: {reason}", fix)))
    assert file.read_text(encoding="utf-8") == "kept"


def test_a_folder_of_something_else_is_left_alone(shop: Workplace) -> None:
    folder = shop.folder / "photos"
    folder.mkdir()
    (folder / "photo.jpg").write_text("kept", encoding="utf-8")
    for fresh in ((), ("--fresh",)):
        done = luthier("train", shop.recipe("into-photos"), "--set", f"output={folder}", *fresh)
        fix = f"give the run a folder of its own: --set output={folder}-2"
        assert (done.status, done.err) == (2, problems((f"{folder}: the folder holds files that are not a run", fix)))
    assert files_in(folder) == {"photo.jpg"}


def test_a_corrected_recipe_starts_where_the_wrong_one_was_refused(shop: Workplace) -> None:
    refused(shop, "corrected", data={"train": str(shop.folder / "rose.jsonl")})
    refused(shop, "corrected", adapter={"targets": ["xyz"]})
    run = shop.train("corrected", train={"steps": 1})
    kinds = [event["event"] for event in run.events()]
    assert kinds == ["start", "plan", "evaluation", "sample", "step", "evaluation", "sample", "save", "finish"]


def test_an_error_as_json(shop: Workplace) -> None:
    done = refused(shop, "as-json", "--json", data={"train": "there/is/none.jsonl"})
    assert done.json == {
        "ok": False,
        "error": "HubError",
        "problems": [
            {
                "where": "there/is/none.jsonl",
                "what": "there is no such file or folder",
                "fix": "give the path of a file",
            }
        ],
    }
    assert done.err == ""


def test_rows_of_one_prompt_cannot_be_held_out(shop: Workplace) -> None:
    rows = write_rows(shop.folder / "one-prompt.jsonl", [("Who are you?", answer) for _, answer in PAIRS])
    assert refused(shop, "one-prompt", data={"train": str(rows)}).err.endswith(
        problems(
            (
                "data.holdout: every row has the same prompt, so none can be held out",
                "set data.holdout: 0, or give a file of other rows as data.heldout",
            )
        )
    )


def test_a_launcher_of_several_processes(shop: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = refused(shop, "launched")
    assert done.err == problems(
        (
            "luthier train: was started as 2 processes, and a run is one",
            "start it without a launcher; CUDA_VISIBLE_DEVICES=1 chooses a card",
        )
    )
