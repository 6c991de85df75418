from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import HubError
from luthier.hub.refs import Bundled, Local, Repo, Web, parse_data, parse_model

RAW = "https://raw.githubusercontent.com"


def problem(parse: object, text: str) -> tuple[str, str]:
    with pytest.raises(HubError) as caught:
        parse(text)  # type: ignore[operator]
    [found] = caught.value.problems
    return found.what, found.fix


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("bundled:smollm2-135m-instruct", Bundled("smollm2-135m-instruct")),
        ("ms:Qwen/Qwen3-0.6B", Repo("ms", "Qwen/Qwen3-0.6B")),
        ("HF:Qwen/Qwen3-0.6B", Repo("hf", "Qwen/Qwen3-0.6B")),
        ("Qwen/Qwen3-0.6B", Repo(None, "Qwen/Qwen3-0.6B")),
        ("https://huggingface.co/Qwen/Qwen3-0.6B", Repo("hf", "Qwen/Qwen3-0.6B")),
        ("https://www.modelscope.cn/models/Qwen/Qwen3-0.6B/summary", Repo("ms", "Qwen/Qwen3-0.6B")),
    ],
)
def test_models(text: str, reference: object) -> None:
    assert parse_model(text) == reference


def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen" / "Qwen3-0.6B").mkdir(parents=True)
    assert parse_model("Qwen/Qwen3-0.6B") == Local(tmp_path / "Qwen" / "Qwen3-0.6B")
    assert parse_model("./Qwen") == Local(tmp_path / "Qwen")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "it is empty"),
        ("hf:Qwen", "`Qwen` is not of the form owner/name"),
        ("gh:Qwen/Qwen3", "Luthier knows no place `gh:`"),
        ("./nothing", "there is no such file or folder"),
        ("/nothing/here", "there is no such file or folder"),
        ("C:\\models\\qwen", "there is no such file or folder"),
        ("../Qwen/Qwen3-0.6B", "there is no such file or folder"),
        ("a/b/c", "there is no such file or folder"),
        ("qwen3", "there is no such file or folder"),
        ("x" * 5000, "there is no such file or folder"),
    ],
)
def test_what_can_be_no_model(text: str, what: str) -> None:
    assert problem(parse_model, text)[0] == what


def test_near_matches_are_named(tmp_path: Path) -> None:
    (tmp_path / "Qwen3-0.6B").mkdir()
    (tmp_path / "other").mkdir()
    _, fix = problem(parse_model, str(tmp_path / "qwen3-06b"))
    assert fix == (
        f"did you mean {tmp_path / 'Qwen3-0.6B'}? Otherwise: a hub's model is written `owner/name`, the bundled one "
        "bundled:smollm2-135m-instruct"
    )


def test_a_file_is_no_model(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.touch()
    assert problem(parse_model, str(weights)) == (
        "this is a file; a model is a folder",
        f"give the folder that holds config.json and the weights: {tmp_path}",
    )


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("ms:owner/name", Repo("ms", "owner/name")),
        ("hf:owner/name:train.jsonl", Repo("hf", "owner/name", "train.jsonl")),
        ("hf:owner/name:data/*.parquet", Repo("hf", "owner/name", "data/*.parquet")),
        ("https://example.org/rows.json", Web("https://example.org/rows.json")),
        ("https://github.com/O/R/blob/B/path/x.json", Web(f"{RAW}/O/R/B/path/x.json")),
        ("https://github.com/O/R/raw/B/path/x.json", Web(f"{RAW}/O/R/B/path/x.json")),
        ("https://github.com/O/R/blob/B/x.json?plain=1#L5", Web(f"{RAW}/O/R/B/x.json")),
        (
            "https://huggingface.co/datasets/o/n/blob/main/x.jsonl",
            Web("https://huggingface.co/datasets/o/n/resolve/main/x.jsonl"),
        ),
    ],
)
def test_data(text: str, reference: object) -> None:
    assert parse_data(text) == reference


def test_what_can_be_no_data(tmp_path: Path) -> None:
    assert problem(parse_data, "http://example.org/rows.json") == (
        "data over http:// can be changed on its way",
        "try https://example.org/rows.json, or download the file yourself and give its path",
    )
    assert problem(parse_data, "hf:owner")[0] == "this names no data"
    assert problem(parse_data, "owner/name") == (
        "there is no such file or folder",
        "give the path of a file; for a data set on a hub write hf:owner/name or ms:owner/name",
    )
    assert problem(parse_data, str(tmp_path)) == (
        "this is a folder; data is a file",
        "name the file, or several of them",
    )
    (tmp_path / "huanhuan.json").touch()
    assert problem(parse_data, str(tmp_path / "huanhaun.json")) == (
        "there is no such file or folder",
        f"did you mean {tmp_path / 'huanhuan.json'}? Otherwise: give the path of a file",
    )
