"""A run's result as one GGUF file, with chat template and stop tokens inside."""

from __future__ import annotations

import shutil
from pathlib import Path

from luthier import console
from luthier.export import converter, llama
from luthier.export.merge import merge_into
from luthier.export.record import Quant
from luthier.hub.fetch import LocalModel
from luthier.report.record import RunFolder

FILE = "model.gguf"


def make(folder: Path, run: RunFolder, base: LocalModel, quant: Quant, end_of_turn_id: int) -> None:
    """Writes model.gguf: merged in float32, so that its weights are rounded once."""
    merged, file = folder / "merged", folder / FILE
    console.say("Merging …")
    merge_into(merged, run, dtype="float32", named=folder)
    if not run.read_recipe().model.trust_remote_code:
        converter.forbid_code(merged)
    _copy_vocabulary(base.path, merged)
    console.say(f"Converting to GGUF ({quant}) …")
    if quant == "q4_k_m":
        whole = folder / "f16.gguf"
        converter.to_gguf(merged, whole, "f16", name=run.name)
        llama.quantize(whole, file, "Q4_K_M")
        whole.unlink()
    else:
        converter.to_gguf(merged, file, quant, name=run.name)
    shutil.rmtree(merged)
    end_turns(file, end_of_turn_id)


def end_turns(file: Path, end_of_turn_id: int) -> bool:
    """Has the file name the template's end-of-turn token, which stops an answer; True where it did not before.

    The converter takes over the tokenizer's end token alone, and a template may end its turns with another.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    reader = GGUFReader(file)
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    ends = {int(field.contents()) for key in keys if (field := reader.get_field(key)) is not None}
    if end_of_turn_id in ends:
        return False
    architecture = str(reader.get_field("general.architecture").contents())
    beside = file.with_name(f".{file.name}.tmp")
    writer = GGUFWriter(beside, architecture)
    copy_with_new_metadata(reader, writer, {keys[1]: MetadataDetails(GGUFValueType.UINT32, end_of_turn_id)}, [])
    del reader  # Windows replaces no file that is mapped
    beside.replace(file)
    return True


def _copy_vocabulary(base: Path, folder: Path) -> None:
    """The SentencePiece file, which the converter reads for some families and transformers does not write again."""
    file = base / "tokenizer.model"
    if file.is_file() and not (folder / file.name).exists():
        shutil.copyfile(file, folder / file.name)
