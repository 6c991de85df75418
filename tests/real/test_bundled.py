"""The bundled model, loaded as any user would load it: by transformers, from its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.hub.fetch import fetch_model

pytestmark = pytest.mark.real

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def folder() -> Path:
    return fetch_model("bundled:smollm2-135m-instruct").path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_it_answers(folder: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.num_parameters() == 134_515_008
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_token_ids(tokenizer: Any) -> None:
    """Each digit apart and the blank line before "1." as one token, as the model was trained."""
    text = "Hello 12345 world! 你好，世界 a\n\n1. b<|im_end|>"
    assert tokenizer(text)["input_ids"] == [
        *[19556, 216, 33, 34, 35, 36, 37, 905, 17, 216, 18645, 250, 48392, 138, 12831, 7906, 240, 178, 239, 230, 253],
        *[1116, 33, 30, 278, 2],
    ]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_chat_template(tokenizer: Any) -> None:
    assert tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_folder(folder: Path, tokenizer: Any) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "LICENSE",
        "NOTICE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "luthier-manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "Apache License" in (folder / "LICENSE").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "_model_name_or_path" not in config and "quantization_config" not in config
    generation = json.loads((folder / "generation_config.json").read_text())
    assert {key: generation[key] for key in generation if key != "transformers_version"} == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    assert (
        json.loads((folder / "tokenizer_config.json").read_text()).keys().isdisjoint({"is_local", "local_files_only"})
    )
    assert tokenizer.model_max_length == 8192
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
