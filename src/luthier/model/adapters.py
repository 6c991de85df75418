"""Adapters on a model: attach, save with all that serving needs, load again."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.data.render import Renderer
from luthier.errors import ModelError, Problem
from luthier.recipe.schema import AdapterSettings, ModelSettings
from luthier.report import disk

CARD = "luthier.json"
"""Beside an adapter or a merged model: base and its identity, chat template, system prompt, thinking, stop tokens."""

SAMPLES, SAMPLE_BYTES = 1000, 64  # of a weight file, for the identity of a model: read in no time


def linear_names(model: Any) -> list[str]:
    """The names of the language model's linear layers, without head and vision tower, as PEFT's `target_modules`.

    Last parts of names (`q_proj`) where those are the language model's alone, full names where another part of the
    model has layers of the same name.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D  # GPT-2's name for a linear layer

    linear = (nn.Linear, Conv1D)
    head = model.get_output_embeddings()
    mine = {id(m) for m in model.get_decoder().modules() if isinstance(m, linear) and m is not head}
    named = [(name, id(m) in mine) for name, m in model.named_modules() if isinstance(m, linear)]
    full = [name for name, own in named if own]
    last = {name.rpartition(".")[2] for name in full}
    if any(name.rpartition(".")[2] in last for name, own in named if not own):
        return sorted(full)
    return sorted(last)


def attach(model: Any, settings: AdapterSettings) -> Any:
    """A PeftModel with a fresh LoRA adapter in float32. Raises ModelError for targets that the model does not have."""
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_targets(model, settings.targets),
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:  # Mamba, for one: PEFT knows which of its layers must not be adapted
        where, fix = f"adapter.targets: {settings.targets}", "name other layers, or use another model"
        raise ModelError(Problem(where, f"PEFT refuses them: {str(error).partition(chr(10))[0]}", fix)) from None


def check_targets(folder: Path, settings: AdapterSettings, model_settings: ModelSettings) -> None:
    """Raises ModelError for named targets that the model does not have; no weights are read."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if settings.targets == "linear":
        return
    remote = model_settings.trust_remote_code
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote)
        _targets(AutoModelForCausalLM.from_config(config, trust_remote_code=remote), settings.targets)


def _targets(model: Any, asked: str | Sequence[str]) -> list[str]:
    if asked == "linear":
        return linear_names(model)
    wanted = [asked] if isinstance(asked, str) else list(asked)
    names = [name for name, _ in model.named_modules()]
    missing = [t for t in wanted if not any(name == t or name.endswith(f".{t}") for name in names)]
    if missing:
        known = sorted({name.rpartition(".")[2] for name in linear_names(model)})
        raise ModelError(*(_no_target(target, known) for target in missing))
    return wanted


def _no_target(target: str, known: list[str]) -> Problem:
    near = difflib.get_close_matches(target, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return Problem(f"adapter.targets: {target}", "the model has no such layer", f"{hint}It has: {', '.join(known)}")


def identity(folder: Path) -> str:
    """What a base model is, wherever it lies: SHA-256 over its config and samples of its weight files.

    Two fine-tunes of one model differ in their weights alone, and often not in all of them.
    """
    digest = hashlib.sha256()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key in ("_name_or_path", "_model_name_or_path", "transformers_version", "dtype", "torch_dtype"):
        config.pop(key, None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            header = handle.read(int.from_bytes(handle.read(8), "little"))
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode() + header)
            for start in range(8 + len(header), size, max(1, size // SAMPLES)):
                handle.seek(start)
                digest.update(handle.read(SAMPLE_BYTES))
    return digest.hexdigest()


def save(model: Any, folder: Path, renderer: Renderer, *, base_ref: str, base_folder: Path, system: str | None) -> None:
    """The adapter in PEFT's format, with tokenizer, chat template and `luthier.json`: the whole folder or none."""
    with disk.whole_folder(folder) as beside:
        model.save_pretrained(beside)
        renderer.tokenizer.save_pretrained(beside)
        config_file = beside / "adapter_config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = str(base_folder)
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False), encoding="utf-8")
        write_card(beside, renderer, base_ref=base_ref, base_folder=base_folder, system=system)


def write_card(folder: Path, renderer: Renderer, *, base_ref: str, base_folder: Path, system: str | None) -> None:
    """`luthier.json`: what it takes to ask the model as it was trained."""
    card = {
        "base": base_ref,
        "base_identity": identity(base_folder),
        "system": system,
        "thinking": renderer.thinking,
        "stop_ids": renderer.stop_ids,
        "chat_template": renderer.tokenizer.chat_template,
    }
    (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_card(folder: Path) -> dict[str, Any]:
    """`luthier.json` of an adapter folder. Raises ModelError where it is missing."""
    file = folder / CARD
    if not file.is_file():
        raise ModelError(Problem(str(folder), f"has no {CARD}: it is not an adapter of Luthier", "name a run's folder"))
    card: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return card


def check_asked_alike(folder: Path, renderer: Renderer) -> None:
    """Raises ModelError where the base would now be asked otherwise than the adapter in `folder` was trained."""
    card, now = read_card(folder), renderer
    kept = {"chat template": "chat_template", "thinking mode": "thinking", "stop tokens": "stop_ids"}
    found = {"chat_template": now.tokenizer.chat_template, "thinking": now.thinking, "stop_ids": now.stop_ids}
    changed = [name for name, key in kept.items() if key in card and card[key] != found[key]]
    if changed:
        what = f"was trained with another {' and another '.join(changed)} than {card['base']} has now"
        raise ModelError(Problem(str(folder), what, "put the model's folder back as it was, or train again"))


def load(model: Any, folder: Path, base_folder: Path) -> Any:
    """The model with a saved adapter on it. Raises ModelError if the adapter belongs to another base."""
    from peft import PeftModel

    card = read_card(folder)
    if card["base_identity"] != identity(base_folder):
        what = f"was trained on {card['base']}, and {base_folder} holds another model"
        raise ModelError(Problem(str(folder), what, f"load it on {card['base']}"))
    return PeftModel.from_pretrained(model, folder)
