"""Adapters on a model: attach, save with all that serving needs, load again."""

from __future__ import annotations

import difflib
import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.data.render import Renderer
from luthier.errors import ModelError, Problem
from luthier.model.files import PICKLES, read_object, tensor_shapes
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

    targets = _targets(model, settings.targets)
    _check_rank(model, targets, settings.rank)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
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


def _check_rank(model: Any, targets: list[str], rank: int) -> None:
    """Raises ModelError for a rank above that of every adapted weight: more cannot change more."""
    weights = (
        module.weight
        for name, module in model.named_modules()
        if any(name == t or name.endswith(f".{t}") for t in targets) and getattr(module, "weight", None) is not None
    )
    highest = max((min(weight.shape) for weight in weights), default=rank)
    if rank > highest:
        what = f"the largest weight that is adapted has rank {highest}"
        raise ModelError(Problem(f"adapter.rank: {rank}", what, "set it to that or less; 8 to 64 is usual"))


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
    config = read_object(folder / "config.json")
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
    card = read_object(file)
    kinds: dict[str, type | tuple[type, ...]] = {"base": str, "base_identity": str, "system": (str, type(None))}
    wrong = [key for key, kind in kinds.items() if not isinstance(card.get(key), kind)]
    if wrong:
        raise ModelError(Problem(str(file), f"is damaged: `{wrong[0]}` is not text", "copy it from the run again"))
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


def load(model: Any, folder: Path, base_folder: Path, *, name: str = "default") -> Any:
    """The model with a saved adapter on it, beside those that it has: the PeftModel.

    Raises ModelError if the adapter belongs to another base, or is not whole; the model is then as it was.
    """
    from peft import PeftModel

    card = read_card(folder)
    if card["base_identity"] != identity(base_folder):
        what = f"was trained on {card['base']}, and {base_folder} holds another model"
        raise ModelError(Problem(str(folder), what, f"load it on {card['base']}"))
    shapes = check_files(folder)
    has_others = isinstance(model, PeftModel)
    tuned = model
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error, below
            if has_others:
                model.load_adapter(folder, adapter_name=name)
            else:
                tuned = PeftModel.from_pretrained(model, folder, adapter_name=name)
        _check_tensors(tuned, shapes, folder, name)
    except Exception as error:  # PEFT reads its config as it comes, and any value of it may be the wrong one
        if has_others and name in model.peft_config:
            model.delete_adapter(name)
        elif tuned is not model:
            tuned.unload()
        if isinstance(error, ModelError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ModelError(Problem(str(folder), f"PEFT cannot load it: {reason}", _COPY)) from None
    return tuned


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_COPY = "copy the adapter folder again, or train again"


def check_files(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's tensors. Raises ModelError for files that are not those of an adapter of ours.

    PEFT itself would fall back to a pickle, and import what a config names.
    """
    config = read_object(folder / CONFIG)
    if config.get("peft_type") != "LORA" or config.get("megatron_config"):
        what = f"is not the config of a LoRA adapter that Luthier made (peft_type {str(config.get('peft_type'))[:40]})"
        raise ModelError(Problem(str(folder / CONFIG), what, _COPY))
    if not (folder / WEIGHTS).is_file():
        pickled = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
        beside = f"; {pickled[0]} is a pickle, which can run code, and is not read" if pickled else ""
        raise ModelError(Problem(str(folder), f"has no {WEIGHTS}{beside}", _COPY))
    shapes = tensor_shapes(folder / WEIGHTS)
    ranks = {shape[0] for name, shape in shapes.items() if name.endswith("lora_A.weight") and shape}
    usual = {config.get("r"), *_object(config.get("rank_pattern")).values()}
    if ranks - usual:
        what = f"{CONFIG} says rank {config.get('r')}, and {WEIGHTS} has rank {min(ranks - usual)}"
        raise ModelError(Problem(str(folder), what, "put the two files of one adapter together"))
    return shapes


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _check_tensors(tuned: Any, shapes: dict[str, tuple[int, ...]], folder: Path, name: str) -> None:
    """PEFT leaves out tensors that it does not know, and fills in ones that it does not find, with a warning."""
    from peft import get_peft_model_state_dict

    expected = {key: tuple(tensor.shape) for key, tensor in get_peft_model_state_dict(tuned, adapter_name=name).items()}
    differing = sorted(dict(expected.items() ^ shapes.items()))
    if differing:
        what = f"its tensors are not those that {CONFIG} asks for: {len(differing)} differ, first {differing[0][:120]}"
        raise ModelError(Problem(str(folder), what, _COPY))
