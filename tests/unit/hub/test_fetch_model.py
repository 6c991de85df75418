from __future__ import annotations

import hashlib
import json
import random
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from standin import Fault, Standin, commit, sha256

from luthier.errors import HubError
from luthier.hub import copies, fetch, hubs
from luthier.hub.fetch import LocalModel, fetch_model

WEIGHTS = random.Random(1).randbytes(300_000)
FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}" * 800,
    "tokenizer_config.json": b"{}",
    "merges.txt": b"a b",
    "chat_template.jinja": b"{{ x }}",
    "LICENSE": b"Apache",
    "modeling_mine.py": b"import os",
    "pytorch_model.bin": b"pickle",
    "model.gguf": b"gguf",
    "onnx/model.onnx": b"onnx",
    "onnx/config.json": b"{}",
    "original/consolidated.safetensors": b"other",
}
FETCHED = {
    "LICENSE",
    "chat_template.jinja",
    "config.json",
    "luthier-manifest.json",
    "merges.txt",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
BOTH = pytest.mark.parametrize("hub", ["hf", "ms"])


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def fail(ref: str, **options: object) -> str:
    with pytest.raises(HubError) as caught:
        fetch_model(ref, **options)  # type: ignore[arg-type]
    return str(caught.value)


@BOTH
def test_fetches_what_transformers_loads_and_nothing_else(standin: Standin, home: Path, hub: str) -> None:
    standin.add_model(hub, "Qwen/Qwen3-0.6B", FILES)
    model = fetch_model(f"{hub}:Qwen/Qwen3-0.6B")
    branch, revision = ("main", commit(FILES)) if hub == "hf" else ("master", "master")
    folder = home / "models" / hub / "Qwen--Qwen3-0.6B" / branch
    assert model == LocalModel(folder, f"{hub}:Qwen/Qwen3-0.6B", hub, revision)
    assert names(folder) == FETCHED
    assert all((folder / name).read_bytes() == FILES[name] for name in FETCHED - {"luthier-manifest.json"})
    manifest = json.loads((folder / "luthier-manifest.json").read_text())
    assert {entry["file"]: (entry["size"], entry["sha256"]) for entry in manifest["files"]} == {
        name: (len(FILES[name]), sha256(FILES[name])) for name in FETCHED - {"luthier-manifest.json"}
    }
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [branch]


@BOTH
def test_what_is_cached_needs_no_network(standin: Standin, monkeypatch: pytest.MonkeyPatch, hub: str) -> None:
    standin.add_model(hub, "a/b", FILES)
    first = fetch_model("a/b")
    standin.requests.clear()
    monkeypatch.setattr(fetch, "answers", None)  # calling it would fail
    assert fetch_model("a/b") == first
    assert standin.requests == []


@BOTH
def test_without_weights_none_are_asked_for(standin: Standin, hub: str) -> None:
    standin.add_model(hub, "a/b", FILES)
    model = fetch_model("a/b", weights=False)
    assert names(model.path) == FETCHED - {"model.safetensors"}
    assert standin.asked("model.safetensors") == []
    whole = fetch_model("a/b")  # is another folder: it is complete or not there
    assert names(whole.path) == FETCHED
    assert fetch_model("a/b", weights=False) == whole  # and is taken where it is there


def test_a_model_without_safetensors_is_refused_before_its_config_is_fetched(standin: Standin) -> None:
    standin.add_model("hf", "a/b", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    assert "its weights are pickle files only" in fail("hf:a/b", weights=False)


@BOTH
def test_an_interrupted_transfer_goes_on_where_it_stopped(standin: Standin, hub: str) -> None:
    standin.add_model(hub, "a/b", FILES)
    standin.faults["model.safetensors"] = Fault("cut", at=100_000, times=1)
    model = fetch_model(f"{hub}:a/b")
    assert (model.path / "model.safetensors").read_bytes() == WEIGHTS
    assert [request.range for request in standin.asked("model.safetensors")] == [None, "bytes=65536-"]


def test_a_line_that_breaks_often_still_brings_the_file(standin: Standin) -> None:
    standin.add_model("hf", "a/b", FILES)
    standin.faults["model.safetensors"] = Fault("cut", at=70_000, step=70_000)
    assert (fetch_model("hf:a/b").path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [request.range for request in standin.asked("model.safetensors")]
    assert ranges == [None, *(f"bytes={65536 * i}-" for i in (1, 2, 3, 4))]


@BOTH
def test_a_transfer_that_failed_goes_on_in_the_next_call(standin: Standin, home: Path, hub: str) -> None:
    standin.add_model(hub, "a/b", FILES)
    standin.faults["model.safetensors"] = Fault("cut", at=100_000)
    message = fail(f"{hub}:a/b")
    assert message.startswith(f"{hub}:a/b: model.safetensors broke off, and 5 more attempts brought nothing; ")
    assert message.endswith("fix: run the command again: it goes on where it stopped")
    assert not list(home.glob("models/*/*/ma*r")) and not list(home.glob("models/*/*/main"))
    standin.faults.clear()
    standin.requests.clear()
    assert (fetch_model(f"{hub}:a/b").path / "model.safetensors").read_bytes() == WEIGHTS
    assert [request.range for request in standin.asked("model.safetensors")] == ["bytes=65536-"]
    assert standin.asked("tokenizer.json") == []  # it was whole already


@BOTH
def test_a_file_with_a_wrong_hash_is_never_kept(standin: Standin, home: Path, hub: str) -> None:
    standin.add_model(hub, "a/b", FILES)
    standin.faults["model.safetensors"] = Fault("flip", at=5)
    title, variable = {"hf": ("Hugging Face", "HF_ENDPOINT"), "ms": ("ModelScope", "MODELSCOPE_ENDPOINT")}[hub]
    assert fail(f"{hub}:a/b") == (
        f"{hub}:a/b: model.safetensors came twice with another size or hash than {title} lists for it\n"
        f"  fix: try again later or without a proxy; if {variable} names a mirror, try without it"
    )
    assert len(standin.asked("model.safetensors")) == 2
    assert not list(home.glob("models/*/*/*/model.safetensors"))
    standin.faults.clear()
    assert (fetch_model(f"{hub}:a/b").path / "model.safetensors").read_bytes() == WEIGHTS


def test_small_files_are_checked_by_their_git_id(standin: Standin) -> None:
    standin.add_model("hf", "a/b", FILES)
    standin.faults["config.json"] = Fault("flip", at=0, times=1)
    assert (fetch_model("hf:a/b").path / "config.json").read_bytes() == FILES["config.json"]
    assert len(standin.asked("/config.json")) == 2


def test_without_a_network_it_is_said_at_once(no_network: str) -> None:
    began = time.monotonic()
    assert fail("Qwen/Qwen3-0.6B") == (
        f"Qwen/Qwen3-0.6B: it is not in the cache, and Hugging Face ({no_network}) and ModelScope ({no_network}) "
        "cannot be reached\n"
        "  fix: check the network or HTTPS_PROXY; set HF_ENDPOINT or MODELSCOPE_ENDPOINT to a mirror; or fetch it "
        "where there is a network and give the folder's path"
    )
    assert time.monotonic() - began < 2.5


def test_a_server_that_never_answers_counts_as_out_of_reach(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "ANSWER_SECONDS", 0.3)
    standin.hanging = threading.Event()
    began = time.monotonic()
    assert "ModelScope" in fail("ms:a/b") and "cannot be reached" in fail("ms:a/b")
    assert time.monotonic() - began < 2


@BOTH
def test_garbage_instead_of_a_listing(standin: Standin, hub: str) -> None:
    standin.listing_faults["a/b"] = (200, "", b"<html>Please log in to the hotel's network</html>")
    title = {"hf": "Hugging Face", "ms": "ModelScope"}[hub]
    expected = f"{hub}:a/b: {title} answers with something that is no list of files: JSONDecodeError: "
    assert fail(f"{hub}:a/b").startswith(expected)


@BOTH
def test_a_model_that_does_not_exist(standin: Standin, hub: str) -> None:
    other = {"hf": "ms", "ms": "hf"}[hub]
    message = fail(f"{hub}:Qwen/Qwen3-0.6b")
    assert (
        "has no such model\n  fix: check the spelling, or try the other hub: " + f"{other}:Qwen/Qwen3-0.6b" in message
    )


def test_hugging_face_hides_private_models(standin: Standin) -> None:
    """To anonymous users it answers 401 for what is private and for what does not exist."""
    standin.listing_faults["a/b"] = (401, "RepoNotFound", b"{}")
    assert fail("hf:a/b") == (
        "hf:a/b: Hugging Face has no such model\n  fix: check the spelling, or try the other hub: ms:a/b; "
        "if it is private, set HF_TOKEN to your access token"
    )


def test_a_mirror_may_be_named_without_https(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.example/")
    assert hubs.hub_of("hf").endpoint == "https://hf-mirror.example"


def test_a_missing_revision(standin: Standin) -> None:
    standin.add_model("hf", "a/b", FILES)
    assert fail("hf:a/b", revision="v2") == (
        "hf:a/b: it has no revision `v2`\n  fix: use a branch, tag or commit of that repository; the default is `main`"
    )


def test_a_revision_has_a_folder_of_its_own(standin: Standin, home: Path) -> None:
    standin.add_model("hf", "a/b", FILES)
    model = fetch_model("hf:a/b", revision=commit(FILES))
    assert model.path == home / "models" / "hf" / "a--b" / commit(FILES)


@BOTH
@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_names_the_variable_and_never_the_token(
    standin: Standin, hub: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = {"hf": "HF_TOKEN", "ms": "MODELSCOPE_API_TOKEN"}[hub]
    standin.add_model(hub, "a/b", FILES)
    if hub == "hf":  # there the listing is open and the files are not
        standin.faults["config.json"] = Fault("status", status=status, error_code="GatedRepo")
    else:
        standin.listing_faults["a/b"] = (status, "", b'{"Code": 10010204001, "Message": "access denied"}')
    message = fail(f"{hub}:a/b")
    assert f"to anonymous users (HTTP {status})" in message
    assert f"then set {variable} to your access token" in message

    monkeypatch.setenv(variable, "hf_verysecretverysecret")
    message = fail(f"{hub}:a/b")
    assert f"to your account (HTTP {status})" in message
    assert f"check that your access token ({variable}) may read it" in message
    assert "secret" not in message
    assert standin.requests[-1].authorization == "Bearer hf_verysecretverysecret"


def test_plain_names_go_to_the_hub_that_has_them(standin: Standin) -> None:
    standin.add_model("ms", "only/ms", FILES)
    standin.add_model("hf", "in/both", FILES)
    standin.add_model("ms", "in/both", FILES)
    assert fetch_model("only/ms").hub == "ms"
    assert fetch_model("in/both").hub == "hf"


def test_the_environment_chooses_the_hub(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.add_model("hf", "in/both", FILES)
    standin.add_model("ms", "in/both", FILES)
    monkeypatch.setenv("LUTHIER_HUB", "ms")
    assert fetch_model("in/both").hub == "ms"
    monkeypatch.setenv("LUTHIER_HUB", "huggingface")
    assert fail("in/both") == ("LUTHIER_HUB: `huggingface` is not a hub\n  fix: set it to `ms` or `hf`, or unset it")


def test_when_one_hub_is_out_of_reach_the_other_is_used(
    standin: Standin, no_network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", standin.url)
    standin.add_model("ms", "a/b", FILES)
    assert fetch_model("a/b").hub == "ms"
    message = fail("a/c")
    assert "ModelScope has no such model" in message
    assert f"hf:a/c: it is not in the cache, and Hugging Face ({no_network}) cannot be reached" in message


def test_a_mistyped_folder_is_recognised(standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "my-qwen").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert f"did you mean {Path('models') / 'my-qwen'}?" in fail("models/my-qwne")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pytorch_model.bin": b"x"}, "its weights are pickle files only (pytorch_model.bin), which can run code"),
        ({"model.Q4.gguf": b"x"}, "it holds GGUF files only (model.Q4.gguf)"),
        ({"README.md": b"x"}, "it holds no weights (*.safetensors)"),
    ],
)
def test_repositories_without_safetensors(standin: Standin, files: dict[str, bytes], message: str) -> None:
    standin.add_model("hf", "a/b", {"config.json": b"{}", **files})
    assert message in fail("hf:a/b")


def test_shards_are_taken_and_other_weights_are_not(standin: Standin) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": b"%d" % i for i in (1, 2)}
    others = {"consolidated.safetensors": b"x", "model.fp16.safetensors": b"x"}
    index = {"model.safetensors.index.json": b"{}"}
    standin.add_model("hf", "a/b", {"config.json": b"{}", **shards, **others, **index})
    folder = fetch_model("hf:a/b").path
    assert names(folder) == {"config.json", "luthier-manifest.json", *shards, *index}


def test_code_comes_only_when_asked_for_and_the_weights_are_not_fetched_twice(
    standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "WORTH_LOOKING", 1000)
    standin.add_model("hf", "a/b", FILES)
    fetch_model("hf:a/b")
    with_code = fetch_model("hf:a/b", allow_code=True)
    assert names(with_code.path) == FETCHED | {"modeling_mine.py"}
    assert with_code.path.name == "main+code"
    assert len(standin.asked("model.safetensors")) == 1


@BOTH
def test_weights_in_the_hubs_own_cache_are_used(
    standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(copies, "WORTH_LOOKING", 1000)
    standin.add_model(hub, "Qwen/Qwen3-0.6B", FILES)
    there = {
        "hf": tmp_path / "HF_HOME" / "hub" / "models--Qwen--Qwen3-0.6B" / "snapshots" / "abc",
        "ms": tmp_path / "MODELSCOPE_CACHE" / "models" / "Qwen" / "Qwen3-0___6B",
    }[hub]
    there.mkdir(parents=True)
    (there / "model.safetensors").write_bytes(WEIGHTS)
    (there / "tokenizer.json").write_bytes(b"x" * len(FILES["tokenizer.json"]))  # same size, other content
    model = fetch_model(f"{hub}:Qwen/Qwen3-0.6B")
    assert (model.path / "model.safetensors").read_bytes() == WEIGHTS
    assert (model.path / "tokenizer.json").read_bytes() == FILES["tokenizer.json"]
    assert (there / "tokenizer.json").read_bytes() == b"x" * len(FILES["tokenizer.json"])
    assert standin.asked("model.safetensors") == []
    assert f"model.safetensors: taken from {there / 'model.safetensors'}" in capsys.readouterr().out


@BOTH
@pytest.mark.parametrize("name", ["..\\evil.json", "C:evil.json"])
def test_names_that_leave_the_folder_are_refused(standin: Standin, tmp_path: Path, hub: str, name: str) -> None:
    standin.add_model(hub, "a/b", {**FILES, name: b"evil"})
    assert f"its listing has the file name {name!r}, which would be written outside its own folder" in fail(
        f"{hub}:a/b"
    )
    assert not list(tmp_path.rglob("*evil*"))


def test_too_little_room_is_found_before_anything_is_fetched(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.add_model("hf", "a/b", FILES)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "it needs 0.0 GB more" in fail("hf:a/b")
    assert standin.asked("model.safetensors") == []


def test_a_file_cut_short_by_hand_is_fetched_again(standin: Standin) -> None:
    standin.add_model("hf", "a/b", FILES)
    folder = fetch_model("hf:a/b").path
    (folder / "model.safetensors").write_bytes(b"short")
    assert (fetch_model("hf:a/b").path / "model.safetensors").read_bytes() == WEIGHTS


def test_two_at_once_fetch_once(standin: Standin) -> None:
    standin.add_model("ms", "a/b", FILES)
    found: list[LocalModel] = []
    threads = [threading.Thread(target=lambda: found.append(fetch_model("ms:a/b"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len({model.path for model in found}) == 1
    assert len(standin.asked("model.safetensors")) == 1


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    assert fetch_model(str(folder)) == LocalModel(folder, str(folder), "local", None)
    assert fail(str(folder), revision="v1") == (
        f"{folder}: it has no revisions (`v1` was asked for)\n  fix: leave the revision out"
    )


def test_git_ids_are_gits() -> None:
    assert hashlib.sha1(b"blob 6\0hello\n").hexdigest() == "ce013625030ba8dba906f756967f9e9ca394464a"
