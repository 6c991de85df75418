"""What the files of a model or adapter say of themselves, read without torch. They may be cut, or a stranger's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.errors import ModelError, Problem

LARGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ModelError where there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _damaged(file, "is not there") from None
    except OSError as error:
        raise _damaged(file, f"cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise _damaged(file, f"is damaged: {error}") from None
    if not isinstance(value, dict):
        raise _damaged(file, "holds no JSON object")
    return value


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of each tensor in a safetensors file. Raises ModelError unless the file is whole."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length)) if 2 <= length <= min(size - 8, LARGEST_HEADER) else None
        if header is None:
            raise _damaged(file, f"is damaged: its header does not fit into its {size:,} bytes")
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    except FileNotFoundError:
        raise _damaged(file, "is not there") from None
    except OSError as error:
        raise _damaged(file, f"cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):
        raise _damaged(file, "is damaged: its header is not that of safetensors") from None
    if size != end:
        how = "cut" if size < end else "longer than it should be"
        raise _damaged(file, f"is {how}: it has {size:,} bytes, and its header names {end:,}")
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads: the one, or the shards that the index names.

    Raises ModelError where there are none, or only pickles, which are programs.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        shards = read_object(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(map(_is_name, shards.values())):
            raise _damaged(folder / INDEX, "is damaged: it names no weight files")
        return [folder / name for name in sorted(set(shards.values()))]
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        what = f"has weights under a name that transformers does not look for ({', '.join(others[:5])})"
        raise ModelError(Problem(str(folder), what, f"fetch it again whole, or give the file its name: {WEIGHTS}"))
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    what = f"holds only pickled weights ({', '.join(pickled[:5])}), which can run code" if pickled else "has no weights"
    raise ModelError(Problem(str(folder), what, "use a model published as safetensors"))


def _is_name(value: Any) -> bool:
    """Whether an index names a file of its own folder."""
    return isinstance(value, str) and value.endswith(".safetensors") and not any(mark in value for mark in "/\\:\0")


def _damaged(file: Path, what: str) -> ModelError:
    return ModelError(Problem(str(file), what, "fetch or copy it again"))
