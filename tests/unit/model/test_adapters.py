"""Adapters: where they go, what is saved, and whose they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CHATML, FAMILIES, add_adapter, make_model, save_model

from luthier.data.render import Renderer
from luthier.errors import ModelError, Problem
from luthier.model import adapters, load
from luthier.recipe.schema import AdapterSettings

SEVEN = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


# ---------------------------------------------------------------- where they go


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", SEVEN),
        ("llama-tied", SEVEN),
        ("gemma3", SEVEN),
        ("phi3", ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]),
        ("gpt2", ["c_attn", "c_fc", "c_proj"]),
    ],
)
def test_every_linear_layer_and_not_the_head(family: str, names: list[str]) -> None:
    assert adapters.linear_names(make_model(family)) == names


def vision_language_model() -> Any:
    """Gemma 3 with its vision tower, whose attention has layers of the same names."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {**FAMILIES["gemma3"][1], "num_hidden_layers": 1, "layer_types": ["full_attention"]}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(config)


def test_a_vision_tower_is_left_alone() -> None:
    model = vision_language_model()
    names = adapters.linear_names(model)
    layer = "model.language_model.layers.0"
    assert names == [
        *(f"{layer}.mlp.{name}" for name in ("down_proj", "gate_proj", "up_proj")),
        *(f"{layer}.self_attn.{name}" for name in ("k_proj", "o_proj", "q_proj", "v_proj")),
    ]
    tuned = adapters.attach(model, AdapterSettings(rank=2))
    adapted = {name.partition(".lora_")[0] for name, _ in tuned.named_parameters() if "lora_" in name}
    assert adapted == {f"base_model.model.{name}" for name in names}


def test_a_head_named_like_a_layer_is_left_alone() -> None:
    model = make_model("llama")
    model.q_proj = model.lm_head  # as InternLM's `output`: the head under a name that layers have
    del model.lm_head
    model.get_output_embeddings = lambda: model.q_proj
    assert [name for name in adapters.linear_names(model) if name.endswith("q_proj")] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
    ]


def test_the_adapter_is_in_float32_and_alone_trainable() -> None:
    settings = AdapterSettings(rank=4, alpha=12, dropout=0.25, targets=["q_proj", "layers.1.mlp.up_proj"])
    tuned = adapters.attach(make_model("llama", dtype=torch.bfloat16).requires_grad_(False), settings)
    trainable = {name: tuple(p.shape) for name, p in tuned.named_parameters() if p.requires_grad}
    layer = "base_model.model.model.layers.{}.{}.lora_{}.default.weight"
    assert trainable == {
        layer.format(0, "self_attn.q_proj", "A"): (4, 64),
        layer.format(0, "self_attn.q_proj", "B"): (64, 4),
        layer.format(1, "self_attn.q_proj", "A"): (4, 64),
        layer.format(1, "self_attn.q_proj", "B"): (64, 4),
        layer.format(1, "mlp.up_proj", "A"): (4, 64),
        layer.format(1, "mlp.up_proj", "B"): (96, 4),
    }
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
    module = tuned.get_base_model().model.layers[0].self_attn.q_proj
    assert module.scaling == {"default": 3.0}
    assert module.lora_dropout["default"].p == 0.25


def test_targets_that_the_model_does_not_have_are_all_named() -> None:
    with pytest.raises(ModelError) as raised:
        adapters.attach(make_model("llama"), AdapterSettings(targets=["q_porj", "v_proj", "dense"]))
    it_has = "It has: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    assert raised.value.problems == (
        Problem("adapter.targets: q_porj", "the model has no such layer", f"did you mean q_proj? {it_has}"),
        Problem("adapter.targets: dense", "the model has no such layer", it_has),
    )
    with pytest.raises(ModelError, match=r"^adapter\.targets: liner: the model has no such layer"):
        adapters.attach(make_model("llama"), AdapterSettings(targets="liner"))


def test_layers_that_peft_refuses() -> None:
    """Mamba's convolution must not be adapted without the rest of its block."""
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, state_size=2))
    with pytest.raises(ModelError) as raised:
        adapters.attach(model, AdapterSettings(rank=4))
    (problem,) = raised.value.problems
    assert problem.where == "adapter.targets: linear"
    assert problem.what.startswith("PEFT refuses them: [PEFT:PeftType.LORA] Module 'out_proj' is incompatible")
    assert problem.fix == "name other layers, or use another model"


def test_a_rank_that_no_layer_can_use() -> None:
    """64 is the model's width; PEFT would ask for 256 GB."""
    with pytest.raises(ModelError) as raised:
        adapters.attach(make_model("llama"), AdapterSettings(rank=10**9))
    assert raised.value.problems == (
        Problem(
            "adapter.rank: 1000000000",
            "the largest weight that is adapted has rank 64",
            "set it to that or less; 8 to 64 is usual",
        ),
    )
    assert adapters.attach(make_model("llama"), AdapterSettings(rank=64)).peft_config["default"].r == 64


# ---------------------------------------------------------------- save and load


@pytest.fixture(scope="module")
def saved(tiny_model: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A saved adapter's folder, and the logits of the model that it was saved from."""
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    tuned = add_adapter(load.load_model(tiny_model, dtype="float32", device="cpu"))
    renderer = Renderer(tokenizer, stop_ids=[299])
    adapters.save(tuned, folder, renderer, base_ref="tiny", base_folder=tiny_model, system="Sei gütig.")
    return folder, logits(tuned)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([[1, 326, 201, 352, 299, 345, 33, 2]])).logits
    return found


def test_the_files_of_an_adapter(saved: tuple[Path, torch.Tensor], tiny_model: Path) -> None:
    folder, _ = saved
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "luthier.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert adapters.read_card(folder) == {
        "base": "tiny",
        "base_identity": adapters.identity(tiny_model),
        "system": "Sei gütig.",
        "thinking": None,
        "stop_ids": [2, 299],
        "chat_template": CHATML,
    }
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tiny_model)
    assert (config["r"], config["lora_alpha"], sorted(config["target_modules"])) == (4, 8, SEVEN)


def test_plain_peft_loads_it_with_the_same_logits(saved: tuple[Path, torch.Tensor]) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    folder, expected = saved
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    assert (logits(base) - expected).abs().max() > 0.1  # the adapter does something
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, folder)), expected, rtol=0, atol=0)
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(folder)), expected, rtol=0, atol=0)


def test_we_load_it_with_the_same_logits(saved: tuple[Path, torch.Tensor], tiny_model: Path) -> None:
    folder, expected = saved
    base = load.load_model(tiny_model, dtype="float32", device="cpu")
    torch.testing.assert_close(logits(adapters.load(base, folder, tiny_model)), expected, rtol=0, atol=0)


def test_an_adapter_of_another_base_is_refused(saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    """The same architecture with other weights: its logits would be nonsense, and no shape would say so."""
    other = save_model(tmp_path / "other", seed=1)
    base = load.load_model(other, dtype="float32", device="cpu")
    with pytest.raises(ModelError) as raised:
        adapters.load(base, saved[0], other)
    assert raised.value.problems == (
        Problem(str(saved[0]), f"was trained on tiny, and {other} holds another model", "load it on tiny"),
    )


def test_a_folder_that_is_no_adapter_of_ours(tiny_model: Path) -> None:
    with pytest.raises(ModelError) as raised:
        adapters.read_card(tiny_model)
    assert raised.value.problems == (
        Problem(str(tiny_model), "has no luthier.json: it is not an adapter of Luthier", "name a run's folder"),
    )


# ---------------------------------------------------------------- what a base model is


def test_a_base_is_itself_wherever_it_lies(tiny_model: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    config = json.loads((moved / "config.json").read_text(encoding="utf-8"))
    config.update(transformers_version="9", dtype="bfloat16", _name_or_path="elsewhere")
    (moved / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (moved / "tokenizer_config.json").unlink()
    assert adapters.identity(moved) == adapters.identity(tiny_model)


def test_a_fine_tune_of_a_base_is_another_model(tiny_model: Path, tmp_path: Path) -> None:
    """Also one that changed a single layer."""
    from safetensors.torch import load_file, save_file

    tuned = shutil.copytree(tiny_model, tmp_path / "tuned")
    weights = load_file(tuned / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"] += 0.001
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    sizes = {(folder / "model.safetensors").stat().st_size for folder in (tuned, tiny_model)}
    assert len(sizes) == 1
    assert adapters.identity(tuned) != adapters.identity(tiny_model)


def test_another_config_is_another_model(tiny_model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}), encoding="utf-8")
    assert adapters.identity(other) != adapters.identity(tiny_model)
