from __future__ import annotations

import json
from pathlib import Path

import pytest
from standin import Fault, Standin

from luthier.errors import HubError
from luthier.hub import fetch
from luthier.hub.fetch import fetch_data

ROWS = b'{"instruction": "a", "output": "b"}\n' * 5000
BOTH = pytest.mark.parametrize("hub", ["hf", "ms"])


def fail(ref: str) -> str:
    with pytest.raises(HubError) as caught:
        fetch_data(ref)
    return str(caught.value)


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROWS)
    assert fetch_data(str(rows)) == [rows]


def test_an_address_is_fetched_once(standin: Standin, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.files["/O/R/main/data/huan huan.json"] = ROWS
    url = f"{standin.url}/O/R/main/data/huan%20huan.json?token=secret"
    [path] = fetch_data(url)
    assert path.parent.parent == home / "data" / "web"
    assert path.name == "huan_huan.json" and path.read_bytes() == ROWS
    assert sorted(file.name for file in path.parent.iterdir()) == ["huan_huan.json", "luthier-manifest.json"]
    manifest = (path.parent / "luthier-manifest.json").read_text()
    assert json.loads(manifest)["ref"] == f"{standin.url}/O/R/main/data/huan%20huan.json"
    assert "secret" not in manifest
    monkeypatch.setattr("luthier.hub.web.answers", None)
    assert fetch_data(url) == [path]


def test_a_github_page_is_fetched_as_its_raw_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(fetch, "fetch_address", lambda url: asked.append(url) or Path("rows"))
    fetch_data("https://github.com/KMnO4-zx/huanhuan-chat/blob/master/dataset/train/lora/huanhuan.json")
    assert asked == ["https://raw.githubusercontent.com/KMnO4-zx/huanhuan-chat/master/dataset/train/lora/huanhuan.json"]


def test_an_interrupted_address_goes_on_where_it_stopped(standin: Standin) -> None:
    standin.files["/rows.jsonl"] = ROWS
    standin.faults["/rows.jsonl"] = Fault("cut", at=70_000, times=1)
    [path] = fetch_data(f"{standin.url}/rows.jsonl")
    assert path.read_bytes() == ROWS
    assert [request.range for request in standin.asked("rows.jsonl")] == [None, "bytes=65536-"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(standin: Standin) -> None:
    standin.files["/rows.jsonl"] = ROWS
    standin.faults["/rows.jsonl"] = Fault("cut", at=70_000)
    assert "5 more attempts brought nothing" in fail(f"{standin.url}/rows.jsonl")
    standin.faults.clear()
    standin.files["/rows.jsonl"] = other = ROWS.upper()
    [path] = fetch_data(f"{standin.url}/rows.jsonl")
    assert path.read_bytes() == other


def test_without_an_etag_an_interrupted_transfer_begins_anew(standin: Standin) -> None:
    standin.etags = False
    standin.files["/rows.jsonl"] = ROWS
    standin.faults["/rows.jsonl"] = Fault("cut", at=70_000, times=1)
    [path] = fetch_data(f"{standin.url}/rows.jsonl")
    assert path.read_bytes() == ROWS
    assert [request.range for request in standin.asked("rows.jsonl")] == [None, None]


def test_a_server_in_trouble_is_asked_again(standin: Standin) -> None:
    standin.files["/rows.jsonl"] = ROWS
    standin.faults["/rows.jsonl"] = Fault("status", status=503, times=2)
    assert fetch_data(f"{standin.url}/rows.jsonl")[0].read_bytes() == ROWS


def test_an_empty_file(standin: Standin) -> None:
    standin.files["/rows.jsonl"] = b""
    assert fetch_data(f"{standin.url}/rows.jsonl")[0].read_bytes() == b""


def test_a_web_page_is_not_data(standin: Standin) -> None:
    standin.files["/page"] = b"<html>"
    standin.content_types["/page"] = "text/html; charset=utf-8"
    assert fail(f"{standin.url}/page") == (
        f"{standin.url}/page: this is a web page, not a data file\n  fix: use the link of the raw file"
    )


def test_addresses_that_give_nothing(standin: Standin) -> None:
    assert "there is no file at this address (HTTP 404)" in fail(f"{standin.url}/none.json")
    standin.files["/private.json"] = b"[]"
    standin.faults["/private.json"] = Fault("status", status=403)
    assert "the server does not give it to anonymous users (HTTP 403)" in fail(f"{standin.url}/private.json")


def test_an_address_out_of_reach(no_network: str) -> None:
    assert fail(f"{no_network}/rows.json?token=secret") == (
        f"{no_network}/rows.json: it is not in the cache, and 127.0.0.1 cannot be reached\n"
        "  fix: check the network or HTTPS_PROXY; or download it where there is a network and give the file's path"
    )


@BOTH
def test_a_data_set_gives_its_training_files(
    standin: Standin, home: Path, hub: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "data/train-00001.jsonl": ROWS,
        "data/train-00000.jsonl": ROWS[:72],
        "data/test-00000.jsonl": b"{}",
        "dataset_infos.json": b"{}",
        "README.md": b"# data",
    }
    standin.add_data(hub, "owner/rows", files)
    folder = home / "data" / hub / "owner--rows" / {"hf": "main", "ms": "master"}[hub]
    paths = fetch_data(f"{hub}:owner/rows")
    assert paths == [folder / "data" / "train-00000.jsonl", folder / "data" / "train-00001.jsonl"]
    assert [path.read_bytes() for path in paths] == [ROWS[:72], ROWS]
    assert capsys.readouterr().err == (
        f"note: {hub}:owner/rows: taking data/train-00000.jsonl, data/train-00001.jsonl, not data/test-00000.jsonl; "
        f"name a file, folder or glob behind a colon to take others: {hub}:owner/rows:data/test-00000.jsonl\n"
    )


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("en/a.jsonl", ["en/a.jsonl"]),
        ("en", ["en/a.jsonl", "en/b.csv"]),
        ("*/a.jsonl", ["en/a.jsonl", "zh/a.jsonl"]),
        ("notes.txt", ["notes.txt"]),
    ],
)
def test_files_of_a_data_set_by_name(standin: Standin, pattern: str, chosen: list[str]) -> None:
    files = {"en/a.jsonl": b"1", "en/b.csv": b"2", "zh/a.jsonl": b"3", "notes.txt": b"4"}
    standin.add_data("hf", "owner/rows", files)
    assert [path.read_bytes() for path in fetch_data(f"hf:owner/rows:{pattern}")] == [files[name] for name in chosen]


def test_a_data_set_without_such_files(standin: Standin) -> None:
    standin.add_data("ms", "owner/rows", {"a.jsonl": b"1", "b.txt": b"2"})
    assert fail("ms:owner/rows:c.jsonl") == "ms:owner/rows: it has no data file `c.jsonl`\n  fix: it has: a.jsonl"
    standin.add_data("ms", "owner/text", {"b.txt": b"2"})
    assert fail("ms:owner/text") == (
        "ms:owner/text: it has no data file (.json, .jsonl, .csv, .tsv, .parquet)\n"
        "  fix: it has: b.txt; convert them and give the file's path"
    )
    assert "ModelScope has no such data set" in fail("ms:owner/none")


def test_names_that_leave_the_folder_are_refused(standin: Standin, tmp_path: Path) -> None:
    standin.add_data("ms", "owner/rows", {"data/../../../evil.jsonl": b"evil"})
    assert "its listing has the file name 'data/../../../evil.jsonl'" in fail("ms:owner/rows")
    assert not list(tmp_path.rglob("evil*"))
