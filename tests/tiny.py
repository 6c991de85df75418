"""Models and a tokenizer small enough to make in a test: two layers, random weights, nothing fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

torch.set_num_threads(1)  # several threads only get in each other's way in products of this size

CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""

QWEN3 = """\
{%- set last = namespace(user=0) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' -}}
{%- if message.role == 'assistant' and loop.index0 > last.user -%}
{{- '<think>\n' + message.reasoning_content | default('') + '\n</think>\n\n' -}}
{%- endif -%}
{{- message.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}"""
"""As Qwen3's: only the answer to the last question shows its thinking, and without thinking it is empty."""

CORPUS = [
    "<|im_start|>system\nYou are a luthier.<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n",
    "<|im_start|>assistant\nI make violins in Cremona.<|im_end|>\n",
    "What wood is the best for a violin? The best wood is spruce for the top and maple for the back.",
    "你是谁？我是制琴师。",
]


def make_tokenizer(chat_template: str | None = CHATML, *, eos_token: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 400 tokens that reads any text, with ChatML's special tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos_token, pad_token="<|endoftext|>")
    tokenizer.chat_template = chat_template
    return tokenizer


_SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LINEAR_ATTENTION: dict[str, Any] = {
    **_SHAPE,
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}

_WINDOWED: dict[str, Any] = {**_SHAPE, "head_dim": 16, "sliding_window": 8}
_GEMMA: dict[str, Any] = {
    **_WINDOWED,
    "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}
# Half of the layers take keys and values of earlier ones; those that see everything have wider heads.
_GEMMA4: dict[str, Any] = {
    **_WINDOWED,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "global_head_dim": 32,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 400,
    "final_logit_softcapping": 30.0,
}
_GPT2: dict[str, Any] = {
    "vocab_size": 400,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_SHAPE, "tie_word_embeddings": False}),
    "llama-tied": ("llama", {**_SHAPE, "tie_word_embeddings": True}),
    "llama-all-heads": ("llama", {**_SHAPE, "num_key_value_heads": 4}),
    "qwen2": ("qwen2", _SHAPE),
    "qwen3": ("qwen3", {**_SHAPE, "head_dim": 16}),
    "gemma3": ("gemma3_text", _GEMMA),
    "gemma4": ("gemma4_text", _GEMMA4),
    "mistral": ("mistral", _WINDOWED),
    "phi": ("phi", _SHAPE),
    "phi3": ("phi3", _SHAPE),
    "gpt2": ("gpt2", _GPT2),
    "opt": ("opt", {**_SHAPE, "ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0}),
    "granite": ("granite", _SHAPE),
    "cohere": ("cohere", _SHAPE),
    "gemma2": ("gemma2", {**_GEMMA, "attn_logit_softcapping": 2.0}),
    "qwen3_5": ("qwen3_5_text", _LINEAR_ATTENTION),
    "gpt_oss": ("gpt_oss", {**_SHAPE, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1}),
    # What the flat engine declines.
    "lfm2": ("lfm2", {**_SHAPE, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    "nemotron": ("nemotron", _SHAPE),
}
"""Name → transformers' model type and its settings."""


def make_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A model of a family with random weights, wide enough apart that a wrong mask changes its loss plainly."""
    kind, usual = FAMILIES[family]
    config = AutoConfig.for_model(kind, **{**usual, **settings})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or name.endswith("bias"):
                parameter.normal_(std=0.2)
    return model.to(dtype)


def add_adapter(model: Any, *, seed: int = 0, **settings: Any) -> Any:
    """A PeftModel with LoRA on every linear layer of the language model, its B matrices not zero."""
    from luthier.model.adapters import attach
    from luthier.recipe.schema import AdapterSettings

    torch.manual_seed(seed)
    tuned = attach(model.requires_grad_(False), AdapterSettings(rank=4, alpha=8, **settings))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return tuned


def save_model(folder: Path, *, family: str = "llama", seed: int = 0) -> Path:
    """An ordinary model folder: config, safetensors, generation config, tokenizer with chat template."""
    model = make_model(family, seed=seed)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 0], pad_token_id=0)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
