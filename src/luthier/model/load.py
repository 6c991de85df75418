"""A local model folder to a tokenizer and a model. Weights are read as safetensors only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from luthier.choice import Choice
from luthier.data.render import Renderer
from luthier.errors import ModelError, Problem
from luthier.model.files import read_object, tensor_shapes, weight_files
from luthier.recipe.schema import ModelSettings

SHIPPED_TEMPLATES = ("chatml", "instruction-response")


def check_folder(folder: Path) -> None:
    """Raises ModelError with everything that keeps this folder from being loaded."""
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is no folder"
        raise ModelError(Problem(str(folder), what, "name the folder of a transformers model, or: luthier fetch REF"))
    problems: list[Problem] = []
    checks: list[Callable[[], object]] = [partial(_check_config, folder / "config.json"), partial(stop_ids, folder)]
    try:
        checks += [partial(tensor_shapes, file) for file in weight_files(folder)]
    except ModelError as error:
        problems += error.problems
    for check in checks:
        try:
            check()
        except ModelError as error:
            problems += error.problems
    if problems:
        raise ModelError(*problems)


def _check_config(file: Path) -> None:
    """transformers would fetch an attention kernel that a config names from a hub, and run it."""
    kernels = [key for key in ("attn_implementation", "_attn_implementation") if "/" in str(read_object(file).get(key))]
    if kernels:
        what = f"`{kernels[0]}` names code on a hub, which would be fetched and run"
        raise ModelError(Problem(str(file), what, f"delete `{kernels[0]}` from it: Luthier chooses by itself"))


def load_tokenizer(folder: Path, settings: ModelSettings) -> Any:
    """The model's tokenizer with its chat template: the model's own, one we ship, or a file.

    Raises ModelError where there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
    except Exception as error:  # the Rust library raises plain Exceptions
        raise ModelError(_unreadable(folder, "tokenizer", error)) from None
    if settings.chat_template is not None:
        tokenizer.chat_template = _template(settings.chat_template)
    if isinstance(tokenizer.chat_template, dict):  # several, as for tool use; chat is the one named "default"
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if not tokenizer.chat_template:
        what = "the tokenizer has no chat template, so it does not say how a conversation is written"
        fix = f"name one we ship (model.chat_template: {' or '.join(SHIPPED_TEMPLATES)}), or a Jinja file"
        raise ModelError(Problem(str(folder), what, fix))
    return tokenizer


def _template(name: str) -> str:
    if name in SHIPPED_TEMPLATES:
        return (resources.files("luthier.model") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    if Path(name).is_file():
        try:
            return Path(name).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            what = f"cannot be read as UTF-8 text ({error})"
            raise ModelError(Problem(f"model.chat_template: {name}", what, "save it as UTF-8")) from None
    shipped = f"we ship {' and '.join(SHIPPED_TEMPLATES)}; or name a Jinja file"
    raise ModelError(Problem(f"model.chat_template: {name}", "is no file", shipped))


def pick_thinking(tokenizer: Any, asked: bool | None) -> Choice[bool | None]:
    """`enable_thinking` of templates that know it; None where they do not. Raises ModelError if asked in vain."""
    known = "enable_thinking" in tokenizer.chat_template
    if asked is not None and not known:
        what = "the chat template knows no enable_thinking"
        raise ModelError(Problem(f"model.thinking: {str(asked).lower()}", what, "leave model.thinking out"))
    if not known:
        return Choice(None, "the chat template has no thinking mode")
    if asked is not None:
        return Choice(asked, "the recipe asks for it")
    return Choice(False, "rows hold answers, not thinking; set model.thinking: true for rows with reasoning")


def make_renderer(folder: Path, tokenizer: Any, thinking: bool | None) -> Renderer:
    """The renderer of a model, with the stop tokens of its generation config."""
    return Renderer(tokenizer, thinking=thinking, stop_ids=stop_ids(folder))


def stop_ids(folder: Path) -> list[int]:
    """`eos_token_id` of the generation config, which may be one, several or none. Raises ModelError."""
    file = folder / "generation_config.json"
    raw = read_object(file).get("eos_token_id") if file.is_file() else None
    ids = raw if isinstance(raw, list) else [] if raw is None else [raw]
    if not all(type(token) is int and token >= 0 for token in ids):
        what = f"`eos_token_id` is {raw!r:.60}, not a token's number or a list of them"
        raise ModelError(Problem(str(file), what, "correct it, or fetch the file again"))
    return ids


def context_length(folder: Path) -> int | None:
    """`max_position_embeddings` of the (text) model, or None where the config has none."""
    config = read_object(folder / "config.json")
    text = config.get("text_config")
    length = config.get("max_position_embeddings") or (text if isinstance(text, dict) else {}).get(
        "max_position_embeddings"
    )
    return length if isinstance(length, int) else None


def load_model(folder: Path, *, dtype: str, device: str, trust_remote_code: bool = False) -> Any:
    """The model, frozen, in `dtype` on `device`. Raises ModelError for weights that cannot be read or do not fit."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    check_folder(folder)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,  # all of them are named below
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ModelError(Problem(str(folder), f"a weight file is damaged: {error}", "fetch it again")) from None
    except Exception as error:  # a config may hold anything, and each architecture reads it in its own way
        raise ModelError(_unreadable(folder, "model", error)) from None
    absent = sorted([*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])])
    if absent:  # transformers would fill them with random numbers
        what = f"the weight files do not fit config.json: {len(absent)} of its tensors are not there, first {absent[0]}"
        raise ModelError(Problem(str(folder), what, "fetch the model again"))
    # Loaded on the CPU first, then moved: direct loading has crashed on gfx1151 (AMD's own advice for that chip).
    return model.requires_grad_(False).to(device)


def quiet() -> None:
    """Turns off progress bars and notices of transformers and peft: Luthier shows its own."""
    import warnings

    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # peft 0.21 asks transformers 5.23 for a property by its old name at every wrap.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def _unreadable(folder: Path, part: str, error: Exception) -> Problem:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    fix = "check the folder, or fetch the model again"
    if "custom code" in reason:
        fix = "read that code, and if you trust it: model.trust_remote_code: true"
    return Problem(str(folder), f"the {part} cannot be loaded: {reason}", fix)
