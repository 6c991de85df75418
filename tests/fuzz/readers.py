"""Coverage-guided fuzzing of what reads strangers' files (atheris, which is not installed with the tests):

    python -m pip install atheris
    mkdir -p build/corpus
    python tests/fuzz/readers.py build/corpus tests/fuzz/cases -max_total_time=600

The first byte of an input chooses what the rest is: a data file by its suffix, a recipe, or a model's file. Whatever it
is, the reader must answer or raise a LuthierError. An input that does otherwise is kept in `tests/fuzz/cases` after the
fix: `test_cases.py` runs them all, without atheris.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "src")]
WATCHED = ["luthier.data", "luthier.recipe", "luthier.model.files", "luthier.training.checkpoint", "luthier.report"]


def read_data(suffix: str, content: bytes, folder: Path) -> None:
    from luthier.data.formats import convert
    from luthier.data.sources import read_rows
    from luthier.recipe.schema import DataSettings

    file = folder / f"rows{suffix}"
    file.write_bytes(content)
    for bad_rows in ("error", "drop"):
        rows = read_rows(file, drop=bad_rows == "drop")
        converted = convert(rows, DataSettings(train=str(file), bad_rows=bad_rows))  # type: ignore[arg-type]
        read, kept = len(rows.rows) + len(rows.dropped), len(converted.conversations) + len(converted.dropped)
        assert read == kept, f"{read} rows were read, and {kept} are left"


def read_recipe(content: bytes, folder: Path) -> None:
    from luthier.recipe.load import load_recipe, parse_recipe

    file = folder / "recipe.yaml"
    file.write_bytes(content)
    recipe = load_recipe(file)
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


def read_overrides(content: bytes, folder: Path) -> None:
    from luthier.recipe.load import with_overrides

    overrides = content.decode(errors="replace").split("\0")
    with_overrides({"model": "a/b", "data": "a.jsonl", "output": "runs/x"}, overrides, "recipe")


def read_weights(content: bytes, folder: Path) -> None:
    from luthier.model.files import read_object, tensor_shapes

    file = folder / "model.safetensors"
    file.write_bytes(content)
    with ignored():
        tensor_shapes(file)
    read_object(file)


def read_model_folder(content: bytes, folder: Path) -> None:
    """Config, index of shards and generation config, separated by NUL."""
    from luthier.model.load import check_folder, context_length

    names = ("config.json", "model.safetensors.index.json", "generation_config.json")
    for name, part in zip(names, content.split(b"\0", 2), strict=False):
        (folder / name).write_bytes(part)
    with ignored():
        check_folder(folder)
    context_length(folder)


def read_run(content: bytes, folder: Path) -> None:
    """The files of a run folder, separated by NUL."""
    from luthier.report.record import RunFolder

    run = RunFolder(folder)
    files = (run.recipe_file, run.events_file, run.resolved_file, run.record_file)
    for file, part in zip(files, content.split(b"\0", 3), strict=False):
        file.write_bytes(part)
    for read in (run.read_recipe, run.events, run.read_resolved, run.record, run.state):
        with ignored():
            read()


def read_manifest(content: bytes, folder: Path) -> None:
    from luthier.training.checkpoint import is_whole

    (folder / "manifest.json").write_bytes(content)
    is_whole(folder)


SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", "")
READERS: list[Callable[[bytes, Path], None]] = [
    *(functools.partial(read_data, suffix) for suffix in SUFFIXES),
    read_recipe,
    read_overrides,
    read_weights,
    read_model_folder,
    read_run,
    read_manifest,
]


@contextlib.contextmanager
def ignored():  # type: ignore[no-untyped-def]
    """A refusal is an answer."""
    from luthier.errors import LuthierError

    with contextlib.suppress(LuthierError):
        yield


def run_one(data: bytes) -> None:
    """One input, in an empty folder."""
    if not data:
        return
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, ignored():
        READERS[data[0] % len(READERS)](data[1:], Path(folder))


def name_of(data: bytes) -> str:
    """What an input is read as, for people: the suffix of a data file, or a reader's name."""
    reader = READERS[data[0] % len(READERS)]
    return reader.args[0] or "no suffix" if isinstance(reader, functools.partial) else reader.__name__


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=WATCHED):
        import luthier.data.formats
        import luthier.data.sources
        import luthier.model.load
        import luthier.recipe.load
        import luthier.report.record
        import luthier.training.checkpoint  # noqa: F401
    atheris.Setup(sys.argv, run_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
