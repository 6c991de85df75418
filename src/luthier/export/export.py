"""`luthier export`: a run's result in the form in which it is used, measured before it is called done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from luthier import __version__, console
from luthier.errors import LuthierError, Problem, RunError
from luthier.export import card, gguf, llama, ollama, record, reference, verify
from luthier.export.merge import check_free, merge_into, stored_dtype
from luthier.export.record import Exported, Quant, Target
from luthier.export.template import name_base, save_adapter
from luthier.hub.fetch import LocalModel, fetch_model
from luthier.hub.manifest import sha256
from luthier.model.adapters import WEIGHTS
from luthier.model.files import weight_files
from luthier.report import disk, words
from luthier.report.record import RunFolder


def export(run: RunFolder, output: Path, *, to: Target, quant: Quant | None = None) -> Exported:
    """Makes the export beside its place, measures it, and gives it its name if it answers as the trained model does.

    Raises:
        RunError: the output is taken, the run has no result, or the disk is full.
        InputError: the target takes no `quant`, or what makes it is not installed.
        CheckFailed: the export answers otherwise than the trained model, or the converter broke off.
    """
    started = time.monotonic()
    check_free(output)
    quant = _pick_quant(to, quant)
    _make_parent(output)
    with in_words(output):
        expected = reference.measure(run)
        base = _base(run)
        _check_room(base, output, to)
        with disk.whole_folder(output) as folder:
            folder.mkdir()
            if to == "adapter":
                save_adapter(run, folder, base=card.public_name(base.ref))
                weights = "adapter"
            elif quant is None:
                console.say("Merging …")
                weights = merge_into(folder, run, dtype=None, named=output).dtype.value
                name_base(folder, card.public_name(base.ref))
            else:
                weights = quant
                if to == "ollama":
                    ollama.write(folder, base, expected)
                gguf.make(folder, run, base, quant, expected.renderer.end_of_turn_id)
            card.copy_licences(base.path, folder)
            figures = verify.verify(folder, to, expected, run.read_recipe().model, named=output)
            made = Exported(
                luthier=__version__,
                to=to,
                weights=weights,
                run=str(run.path.resolve()),
                adapter_sha256=sha256(run.adapter_dir / WEIGHTS),
                base=card.public_name(base.ref),
                revision=base.revision,
                made=_today(),
                seconds=round(time.monotonic() - started, 1),
                figures=figures,
                files={},
            )
            verify.show(made)
            verify.refuse_failed(made, output)
            made = _seal(folder, run, made, base)
    return made


def verify_again(folder: Path, run: RunFolder | None = None) -> Exported:
    """Measures an export once more, as after the installation of the program that runs it, and keeps the figures.

    Args:
        run: where the run lies now; None: where it was when it was exported.

    Raises:
        RunError: no export, or its run is gone or has been trained anew.
        CheckFailed: a file has changed, or it answers otherwise than the trained model: it is kept, marked as failed.
    """
    made = record.read(folder)
    run = run or RunFolder(made.run)
    if not run.recipe_file.is_file():
        fix = f"name the folder where it is now: {console.command(f'export RUN --verify {words.typed(folder)}')}"
        raise RunError(Problem(str(run.path), "the run of this export is not there", fix))
    with in_words(folder):
        expected = reference.measure(run)
        if sha256(run.adapter_dir / WEIGHTS) != made.adapter_sha256:
            what = "holds another adapter than the one that was exported"
            raise RunError(Problem(str(run.path), what, "name the right run, or export this one again"))
        figures = verify.verify(folder, made.to, expected, run.read_recipe().model, named=folder)
        made = _seal(folder, run, made.model_copy(update={"figures": figures}), _base(run))
    verify.show(made)
    verify.refuse_failed(made, folder)
    return made


def _pick_quant(to: Target, quant: Quant | None) -> Quant | None:
    if to in ("merged", "adapter"):
        if quant is not None:
            what = f"{'a merged model' if to == 'merged' else 'an adapter'} is not quantised"
            raise RunError(Problem(f"--quant {quant}", what, "leave --quant out, or export --to gguf or --to ollama"))
        return None
    if quant == "q4_k_m":
        llama.need()
    return quant or "q8_0"


def _seal(folder: Path, run: RunFolder, made: Exported, base: LocalModel) -> Exported:
    """Card and record, the last files of the folder."""
    card.write(folder, run, made, base.path)
    made = made.model_copy(update={"files": record.hashes(folder)})
    record.write(folder, made)
    return made


def _base(run: RunFolder) -> LocalModel:
    model = run.read_recipe().model
    return replace(fetch_model(model.ref, revision=model.revision, allow_code=model.trust_remote_code), ref=model.ref)


def _check_room(base: LocalModel, output: Path, to: Target) -> None:
    """Raises DiskFull before the work where it could not end well."""
    if to == "adapter":
        return
    size = sum(file.stat().st_size for file in weight_files(base.path))
    widened = 1 if stored_dtype(base.path) == "float32" else 2
    needed = size * (widened + (0 if to == "merged" else 1))
    if disk.free_bytes(output) < needed:
        raise disk.DiskFull("the export", needed)


@contextlib.contextmanager
def in_words(output: Path) -> Iterator[None]:
    """A full disk as an error that says what to do."""
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        if disk.is_full(error):
            what = disk.fullness(error, output)
            raise RunError(Problem(str(output), what, "make room there, or name a folder elsewhere: -o DIR")) from error
        raise


def _make_parent(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot be made: {error.strerror or error}"
        raise RunError(Problem(str(output), what, "name a folder that can be written: -o DIR")) from None


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()
