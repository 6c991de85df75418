"""SmolLM2's own tokenizer and template as GGUF: written by the real converter, read by transformers and llama.cpp.

The weights are a small random model's: what is tested is the way, and 49,152 rows are enough to find a shifted one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import add_adapter, make_model
from transformers import AutoTokenizer, GenerationConfig

from luthier.data.render import Renderer
from luthier.errors import ModelError
from luthier.export import export as exports
from luthier.export import llama
from luthier.export.export import export, verify_again
from luthier.hub.fetch import fetch_model
from luthier.model import adapters
from luthier.recipe.load import parse_recipe
from luthier.report.record import RunFolder

pytestmark = pytest.mark.real

needs_llama = pytest.mark.skipif(not llama.is_installed(), reason="llama-cpp-python is not installed (luthier[gguf])")
SYSTEM = "You are a luthier."
ROWS = [
    ("Who are you?", "I make violins in Cremona.\n\n1. And violas."),
    ("你是谁？", "我是制琴师。"),
    ("How long does the varnish dry?", "In summer a week; in winter I do not varnish at all."),
    ("What wood is the best?", "Spruce for the top, maple for the back: 2 of each."),
]


def make_run(
    folder: Path, tokenizer: Any, family: str = "llama-tied", rows: int = 49152, thinking: bool | None = None
) -> RunFolder:
    """A trained run, without the training: base, adapter, rows, recipe and the event that ends it."""
    end = tokenizer.eos_token_id
    ids = {"bos_token_id": 1, "eos_token_id": end, "pad_token_id": end}
    shape = {"vocab_size": rows, "hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}
    model = make_model(family, **shape, **ids, max_position_embeddings=512)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [json.dumps({"instruction": asked, "output": said}, ensure_ascii=False) for asked, said in ROWS * 2]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    run = RunFolder(folder / "run").create()
    data = {"train": str(folder / "rows.jsonl"), "system": SYSTEM, "holdout": 4, "duplicates": "keep"}
    reference = {"ref": str(folder / "base"), "device": "cpu"}
    run.write_recipe(parse_recipe({"model": reference, "data": data, "output": str(run.path)}))
    renderer = Renderer(tokenizer, thinking=thinking, stop_ids=[end])
    kept: dict[str, Any] = {"base_ref": str(folder / "base"), "base_folder": folder / "base", "system": SYSTEM}
    adapters.save(add_adapter(model), run.adapter_dir, renderer, **kept)
    run.log({"event": "start", "step": 0, "total_steps": 1, "resumed": False})
    run.log({"event": "finish", "step": 1})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(fetch_model("bundled:smollm2-135m-instruct").path)
    return make_run(tmp_path_factory.mktemp("export"), tokenizer)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("reference", "verify"):
        monkeypatch.setattr(f"luthier.export.{module}.MAX_NEW_TOKENS", 8)


@pytest.mark.parametrize("quant", ["f16", "q8_0"])
def test_a_gguf_file_without_llama_cpp(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: Any
) -> None:
    monkeypatch.setattr(llama, "is_installed", lambda: False)
    made = export(run, tmp_path / "gguf", to="gguf", quant=quant)
    assert made.state == "unverified"
    assert made.figures is not None
    assert (made.figures.chat, made.figures.prompts) == (False, 4)
    assert made.figures.runtime.endswith("(weights alone)")
    assert {path.name for path in (tmp_path / "gguf").iterdir()} == {"README.md", "export.json", "model.gguf"}
    from gguf import GGUFReader

    reader = GGUFReader(tmp_path / "gguf" / "model.gguf")
    assert reader.get_field("general.name").contents() == "run"
    field = {key: reader.get_field(f"tokenizer.{key}").contents() for key in ("ggml.eos_token_id", "chat_template")}
    template = AutoTokenizer.from_pretrained(run.adapter_dir).chat_template
    assert field == {"ggml.eos_token_id": 2, "chat_template": template}


@needs_llama
@pytest.mark.parametrize(("to", "quant"), [("gguf", "f16"), ("ollama", "f16"), ("gguf", "q8_0")])
def test_through_llama_cpp(run: RunFolder, tmp_path: Path, to: Any, quant: Any) -> None:
    made = export(run, tmp_path / "out", to=to, quant=quant)
    assert made.state == "verified"
    assert made.figures is not None
    assert (made.figures.prompts, made.figures.same_prompts) == (4, 4)
    assert verify_again(tmp_path / "out").model_dump() == made.model_dump()


@needs_llama
def test_qwen3_asks_without_thinking_as_it_was_trained(qwen3_folder: Path, tmp_path: Path) -> None:
    """llama.cpp passes no `enable_thinking`, and Qwen3's own template would think."""
    tokenizer = AutoTokenizer.from_pretrained(qwen3_folder)
    run = make_run(tmp_path, tokenizer, "qwen3", rows=151936, thinking=False)
    made = export(run, tmp_path / "out", to="ollama", quant="f16")
    assert made.state == "verified"
    assert made.figures is not None
    assert (made.figures.prompts, made.figures.same_prompts) == (4, 4)
    modelfile = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")
    assert '<think>\n\n</think>\n\n"""\nSYSTEM' in modelfile
    assert 'PARAMETER stop "<|im_end|>"' in modelfile


def test_a_tokenizer_that_llama_cpp_does_not_know(tmp_path: Path, tokenizer: Any) -> None:
    run = make_run(tmp_path, tokenizer)
    with pytest.raises(ModelError) as error:
        exports.export(run, tmp_path / "out", to="gguf", quant="f16")
    assert str(error.value) == (
        "the GGUF converter: llama.cpp does not know this model's tokenizer (its pre-tokenizer was not recognized)\n"
        "  fix: export it as --to merged, which transformers and vLLM run"
    )
    assert not (tmp_path / "out").exists()
