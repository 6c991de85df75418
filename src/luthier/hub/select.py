"""Which files of a repository are needed: a model's safetensors and what goes with them, a data set's rows."""

from __future__ import annotations

import fnmatch
import re
from pathlib import PurePosixPath

from luthier import console
from luthier.errors import HubError, Problem
from luthier.hub.hubs import Listing, RemoteFile

DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_BESIDE_WEIGHTS = (
    "*.json",  # configuration, tokenizer, the index of sharded weights
    "*.jinja",
    "*.model",  # SentencePiece
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "LICENSE*",
    "NOTICE*",
    "README.md",
    "additional_chat_templates/*.jinja",
)
_STANDARD_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_DESCRIPTIONS = {"dataset_infos.json", "dataset_dict.json", "dataset_info.json", "state.json", "configuration.json"}


def model_files(listing: Listing, where: str, *, allow_code: bool = False) -> list[RemoteFile]:
    """The files that transformers loads. Python files come along only with `allow_code`.

    Raises HubError when there are no safetensors weights: pickles can run code when they are loaded.
    """
    weights = _weights(listing.files)
    if not weights:
        raise _no_weights(listing, where)
    patterns = (*_BESIDE_WEIGHTS, "*.py") if allow_code else _BESIDE_WEIGHTS
    beside = [file for file in listing.files if any(_matches(file.path, pattern) for pattern in patterns)]
    return [*beside, *weights]


def files_beside_weights(listing: Listing, where: str, *, allow_code: bool = False) -> list[RemoteFile]:
    """The same without the weights, which have to be there."""
    weights = {file.path for file in _weights(listing.files)}
    return [file for file in model_files(listing, where, allow_code=allow_code) if file.path not in weights]


def _weights(files: tuple[RemoteFile, ...]) -> list[RemoteFile]:
    """Top-level safetensors under the names that transformers looks for; under any name if none has such a name."""
    found = [file for file in files if _matches(file.path, "*.safetensors")]
    standard = [file for file in found if _STANDARD_WEIGHTS.fullmatch(file.path)]
    whole = [file for file in standard if file.path == "model.safetensors"]  # transformers prefers it to shards
    return whole or standard or found


def _no_weights(listing: Listing, where: str) -> HubError:
    paths = [file.path for file in listing.files]
    pickles = [path for path in paths if path.endswith(_PICKLES)]
    ggufs = [path for path in paths if path.endswith(".gguf")]
    if pickles:
        what = f"its weights are pickle files only ({pickles[0]}), which can run code when loaded"
        fix = (
            "look for a repository or revision of this model with .safetensors; if you trust it, convert it once with "
            "transformers (`from_pretrained(…)`, then `save_pretrained(FOLDER)`) and give that folder"
        )
    elif ggufs:
        what = f"it holds GGUF files only ({ggufs[0]}), which are made for running, not for training"
        fix = "use the repository that it was converted from; its page names it"
    else:
        what, fix = "it holds no weights (*.safetensors)", "check that it is a model's repository, and its revision"
    return HubError(Problem(where, what, fix))


def data_files(listing: Listing, where: str, pattern: str | None) -> list[RemoteFile]:
    """The data files that `pattern` names (a path, a folder or a glob); with None those of the training split.

    Raises HubError when there are none.
    """
    candidates = [file for file in listing.files if _is_data(file.path)]
    if pattern is not None:
        folder = pattern.rstrip("/") + "/"
        chosen = [f for f in listing.files if f.path == pattern]
        chosen = chosen or [f for f in candidates if f.path.startswith(folder) or fnmatch.fnmatchcase(f.path, pattern)]
    else:
        chosen = [file for file in candidates if "train" in re.split(r"[^a-z]+", file.path.lower())] or candidates
    if not chosen:
        raise _no_data(listing, where, pattern, [file.path for file in candidates])
    chosen.sort(key=lambda file: file.path)
    left_out = sorted({file.path for file in candidates} - {file.path for file in chosen})
    if pattern is None and left_out:
        console.warn(
            f"{where}: taking {_listed([f.path for f in chosen])}, not {_listed(left_out)}; "
            f"name a file, folder or glob behind a colon to take others: {where}:{left_out[0]}"
        )
    return chosen


def _no_data(listing: Listing, where: str, pattern: str | None, candidates: list[str]) -> HubError:
    if pattern is not None:
        what = f"it has no data file `{pattern}`"
        fix = f"it has: {_listed(candidates or [file.path for file in listing.files])}"
    else:
        what = f"it has no data file ({', '.join(DATA_SUFFIXES)})"
        fix = f"it has: {_listed([file.path for file in listing.files])}; convert them and give the file's path"
    return HubError(Problem(where, what, fix))


def _is_data(path: str) -> bool:
    name = PurePosixPath(path)
    return name.suffix.lower() in DATA_SUFFIXES and name.name not in _DESCRIPTIONS and not path.startswith(".")


def _matches(path: str, pattern: str) -> bool:
    """A glob in which `*` stops at a slash: `*.json` is top-level only."""
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return (", ".join(paths[:5]) + more) or "no files"
