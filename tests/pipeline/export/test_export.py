"""A run's result as people use it: measured before it is called done, and never called done when it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from driver import SYSTEM, Workplace, files_in, luthier
from peft import PeftModel
from tiny import QWEN3
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.data.conversation import Message
from luthier.export import record
from luthier.inference.opened import open_ref, open_run
from luthier.report.record import RunFolder

ALWAYS = {"LICENSE", "README.md", "export.json", "luthier.json"}
ALWAYS |= {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}


def test_what_is_measured(shop: Workplace, run: RunFolder, exports: dict[str, Any]) -> None:
    for to, weights in (("merged", "float32"), ("adapter", "adapter")):
        said = exports[to]
        figures = said["figures"]
        assert (said["ok"], said["state"], said["to"], said["weights"]) == (True, "verified", to, weights)
        assert (figures["prompts"], figures["same_prompts"], figures["source"]) == (4, 4, "held-out prompts")
        assert (figures["top1"], figures["answers"], figures["same_answers"]) == (1.0, 4, 4)
        assert 0 <= figures["kl"] < 1e-6
        assert figures["ended_exported"] == figures["ended_trained"]
        assert figures["end_exported"] == pytest.approx(figures["end_trained"], abs=1e-4)
        kept = json.loads((shop.folder / "exports" / to / "export.json").read_text(encoding="utf-8"))
        assert kept == {key: said[key] for key in kept}


def test_the_table(shop: Workplace, run: RunFolder) -> None:
    done = luthier("export", run.path, "--to", "adapter", "-o", shop.folder / "table")
    assert (done.status, done.err) == (0, "")
    lines = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in done.out.splitlines() if "│" in line]
    assert [line[0] for line in lines] == [
        "prompts with identical tokens",
        "KL divergence, nats (mean)",
        "same likeliest token",
        "probability of ending, where answers end",
        "free answers that end",
    ]
    assert lines[0] == ["prompts with identical tokens", "", "4 of 4", "all", "✓"]
    assert {line[4] for line in lines} == {"✓"}
    assert f"push     luthier push {shop.folder / 'table'} --to ms:OWNER/NAME" in done.out


def test_a_merged_folder_is_whole(shop: Workplace, run: RunFolder, exports: dict[str, Any]) -> None:
    folder = shop.folder / "exports" / "merged"
    assert files_in(folder) == ALWAYS | {"config.json", "generation_config.json", "model.safetensors"}
    assert json.loads((folder / "generation_config.json").read_bytes())["eos_token_id"] == [0, 2]
    assert (folder / "LICENSE").read_text(encoding="utf-8") == "Do as you like.\n"
    assert set(exports["merged"]["files"]) == files_in(folder) - {"export.json"}
    assert luthier("chat", folder, "-p", "Who are you?", "--json").json["system"] == SYSTEM


def test_an_adapter_folder_loads_with_plain_peft(shop: Workplace, base: Path, exports: dict[str, Any]) -> None:
    folder = shop.folder / "exports" / "adapter"
    own = {"adapter_config.json", "adapter_model.safetensors", "generation_config.json"}
    assert files_in(folder) == ALWAYS | own
    assert json.loads((folder / "generation_config.json").read_bytes())["eos_token_id"] == [0, 2]
    config = json.loads((folder / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == base.name  # and not where it lies on this machine
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("Who are you?")["input_ids"]])
    whole = AutoModelForCausalLM.from_pretrained(shop.folder / "exports" / "merged").eval()
    with torch.no_grad():
        assert float((tuned(ids).logits - whole(ids).logits).abs().max()) < 1e-4


def test_no_file_but_the_record_names_a_folder_of_this_machine(shop: Workplace, exports: dict[str, Any]) -> None:
    named = [
        file.name
        for to in exports
        for file in (shop.folder / "exports" / to).iterdir()
        if str(shop.folder).encode() in file.read_bytes()
    ]
    assert named == ["export.json", "export.json"]


def test_the_card(shop: Workplace, run: RunFolder, base: Path, exports: dict[str, Any]) -> None:
    text = (shop.folder / "exports" / "merged" / "README.md").read_text(encoding="utf-8")
    result, data = (run.record() or {})["result"], (run.record() or {})["data"]
    assert text.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    assert str(shop.folder) not in text
    for part in (
        f"# {run.name}\n",
        f"`{base.name}`, fine-tuned with LoRA and merged into one ordinary model.",
        "| prompts with identical tokens |  | 4 of 4 | all |",
        f"| data | `rows.jsonl`, 24 rows, SHA-256 `{data['files'][0]['sha256']}` |",
        "| `adapter.rank` | 16 |",
        f"| held-out loss before, after | {result['heldout_loss_before']:.2f}, {result['heldout_loss_after']:.2f} nats",
        f"System prompt of the training:\n\n```\n{SYSTEM}\n```",
        f"after:\n\n```\n{(run.record() or {})['answers'][0]['tuned']}\n```",
        "That of the base model: [LICENSE](LICENSE).",
    ):
        assert part in text


def test_an_export_can_be_measured_again(shop: Workplace, run: RunFolder, exports: dict[str, Any]) -> None:
    folder = shop.folder / "exports" / "merged"
    before = record.read(folder)
    done = luthier("export", "--verify", folder, "--json")
    assert (done.status, done.json["state"]) == (0, "verified")
    assert record.read(folder).model_dump() == before.model_dump()


def test_a_run_that_moved(shop: Workplace, run: RunFolder, exports: dict[str, Any]) -> None:
    folder = shop.folder / "exports" / "adapter"
    kept = (folder / "export.json").read_text(encoding="utf-8")
    gone = shop.folder / "gone"
    (folder / "export.json").write_text(kept.replace(str(run.path.resolve()), str(gone)), encoding="utf-8")
    done = luthier("export", "--verify", folder)
    assert (done.status, done.err) == (
        2,
        f"✗ {gone}: the run of this export is not there\n"
        f"  → name the folder where it is now: luthier export RUN --verify {folder}\n",
    )
    assert luthier("export", run.path, "--verify", folder).status == 0
    (folder / "export.json").write_text(kept, encoding="utf-8")


def test_another_run_is_not_taken_for_it(shop: Workplace, run: RunFolder, exports: dict[str, Any]) -> None:
    other = shop.train("export-another", train={"steps": 2})
    done = luthier("export", other.path, "--verify", shop.folder / "exports" / "adapter")
    assert (done.status, done.err) == (
        2,
        f"✗ {other.path}: holds another adapter than the one that was exported\n"
        "  → name the right run, or export this one again\n",
    )


def test_prompts_of_the_record_where_the_rows_are_gone(shop: Workplace, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    shutil.copy(shop.rows, rows)
    run = shop.train("export-rowless", data={"train": str(rows)}, train={"steps": 2})
    rows.unlink()
    done = luthier("export", run.path, "--to", "adapter", "-o", tmp_path / "out", "--json")
    assert done.status == 0, done.err
    assert (done.json["figures"]["source"], done.json["figures"]["prompts"]) == ("prompts of run.json", 4)
    assert "the run's rows cannot be read" in done.err


def test_a_thinking_model_is_asked_to_think(shop: Workplace, tmp_path: Path) -> None:
    """In Luthier by what the folder remembers, elsewhere by its template's default."""
    thinker = tmp_path / "thinker"
    shutil.copytree(shop.model, thinker)
    (thinker / "chat_template.jinja").write_text(QWEN3, encoding="utf-8")
    settings = {"ref": str(thinker), "thinking": True}
    run = shop.train("export-thinking", model=settings, train={"steps": 2})
    merged = tmp_path / "merged"
    assert luthier("merge", run.path, "-o", merged).status == 0
    opened = open_ref(str(merged))
    asked = [Message("user", "Hi")]
    expected = open_run(run).renderer.prompt_ids(asked)
    assert opened.renderer.prompt_ids(asked) == expected
    plain = AutoTokenizer.from_pretrained(merged).apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True
    )
    assert plain["input_ids"] == expected
