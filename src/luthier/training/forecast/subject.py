"""What a plan is made for: a model's config, and rows where they can be read. No weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier import console
from luthier.choice import Choice
from luthier.data.prepare import Prepared, pick_max_length, prepare
from luthier.errors import ModelError, Problem
from luthier.hub.fetch import fetch_model
from luthier.model import files, load
from luthier.recipe.schema import ModelSettings, Recipe

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def read_config(settings: ModelSettings) -> tuple[Any, Path]:
    """The config of a model's folder, of a folder with a config alone, or of a config.json. Raises ModelError."""
    from transformers import AutoConfig

    load.quiet()
    named = Path(settings.ref)
    if named.is_file() and named.suffix == ".json":
        folder = named.parent
    elif named.is_dir():
        folder = named
    else:
        code = settings.trust_remote_code
        folder = fetch_model(settings.ref, revision=settings.revision, allow_code=code, weights=False).path
    file = named if named.is_file() else folder / "config.json"
    files.read_object(file)
    try:
        return AutoConfig.from_pretrained(file, trust_remote_code=settings.trust_remote_code), folder
    except Exception as error:  # a config may hold anything, and each architecture reads it in its own way
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            Problem(str(file), f"cannot be read as a model's config: {reason}", "check the file")
        ) from None


def read_rows(recipe: Recipe, folder: Path, choices: dict[str, Choice[Any]]) -> Prepared | None:
    """The rows as tokens, or None where the folder has no tokenizer: then nothing is known of their lengths."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        console.warn(f"{folder} has no tokenizer: the memory is planned for the longest rows that fit, and no time")
        return None
    tokenizer = load.load_tokenizer(folder, recipe.model)
    thinking = choices["model.thinking"] = load.pick_thinking(tokenizer, recipe.model.thinking)
    renderer = load.make_renderer(folder, tokenizer, thinking.value)
    longest = choices["data.max_length"] = pick_max_length(recipe.data, load.context_length(folder))
    return prepare(recipe.data, renderer, max_length=longest.value, seed=recipe.train.seed)
