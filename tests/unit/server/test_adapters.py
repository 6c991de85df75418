"""Adapters that come and go while the server runs."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Running, paused, serving, until

from luthier.data.conversation import Message
from luthier.errors import RunError
from luthier.model.adapters import read_card
from luthier.server.run import name_runs

CHAT = "/v1/chat/completions"


def ask(client: httpx.Client, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 8}
    return client.post(CHAT, json=body)


def test_an_adapter_comes_and_goes(shelf: Path, folder_of_adapters: Path) -> None:
    with serving(shelf, "violin", folder=folder_of_adapters) as server, server.client() as client:
        assert client.get("/v1/adapters").json() == {"object": "list", "available": ["spare"], "served": ["violin"]}
        before = ask(client, "violin").json()["choices"]
        added = client.post("/v1/adapters", json={"folder": "spare", "name": "cello"})
        assert (added.status_code, added.json()["id"]) == (201, "cello")
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["base", "violin", "cello"]
        said = ask(client, "cello")
        assert said.status_code == 200
        assert ask(client, "violin").json()["choices"] == before
        assert said.json()["choices"][0]["message"] != before[0]["message"]
        gone = client.delete("/v1/adapters/cello")
        assert gone.json() == {"id": "cello", "object": "model", "deleted": True}
        assert ask(client, "cello").status_code == 404
        assert ask(client, "violin").json()["choices"] == before
        again = client.post("/v1/adapters", json={"folder": "spare"})
        assert again.json()["id"] == "spare"
        assert ask(client, "spare").json()["choices"] == said.json()["choices"]


def test_an_answer_goes_on_while_its_adapter_is_removed(shelf: Path, folder_of_adapters: Path) -> None:
    with serving(shelf, "violin", folder=folder_of_adapters) as server, server.client() as client:
        whole = ask(client, "violin").json()["choices"]
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(ask(client, "violin")))
        with paused(server.models.batcher):
            thread.start()
            until(lambda: server.models.batcher.waiting() == 1)
            assert client.delete("/v1/adapters/violin").status_code == 200
        thread.join()
        assert answers[0].json()["choices"] == whole


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"folder": ".."}, 404, "There is no adapter '..' in --adapters. There are: spare."),
        ({"folder": "../spare"}, 404, "There is no adapter '../spare' in --adapters. There are: spare."),
        ({"folder": "/etc"}, 404, "There is no adapter '/etc' in --adapters. There are: spare."),
        ({"folder": "link"}, 404, "There is no adapter 'link' in --adapters. There are: spare."),
        ({"folder": "empty"}, 404, "There is no adapter 'empty' in --adapters. There are: spare."),
        ({"folder": "spare", "name": "violin"}, 409, "The name 'violin' is taken: remove it first, or give another."),
        ({"folder": "spare", "name": "base"}, 409, "The name 'base' is taken: remove it first, or give another."),
        ({"folder": "spare", "name": "a\nb"}, 400, "name: letters, digits, and . : _ - inside, at most 128."),
        ({"path": "spare"}, 400, "folder: Field required. Unrecognized request argument supplied: path."),
    ],
)
def test_only_a_folder_in_adapters_can_be_added(
    shelf: Path, folder_of_adapters: Path, body: dict[str, Any], status: int, message: str
) -> None:
    (folder_of_adapters / "link").symlink_to(shelf / "lute", target_is_directory=True)
    with serving(shelf, "violin", folder=folder_of_adapters) as server, server.client() as client:
        response = client.post("/v1/adapters", json=body)
        assert (response.status_code, response.json()["error"]["message"]) == (status, message)
        assert [served.name for served in server.models.all()] == ["base", "violin"]


def test_a_damaged_adapter_is_refused_and_the_others_go_on(shelf: Path, folder_of_adapters: Path) -> None:
    weights = folder_of_adapters / "spare" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with serving(shelf, "violin", folder=folder_of_adapters) as server, server.client() as client:
        before = ask(client, "violin").json()["choices"]
        error = client.post("/v1/adapters", json={"folder": "spare"}).json()["error"]
        assert error["code"] == "adapter_not_loaded"
        assert "adapter_model.safetensors" in error["message"]
        assert ask(client, "violin").json()["choices"] == before


def test_without_a_folder_nothing_changes(server: Running) -> None:
    what = "Adapters cannot be changed while the server runs: start it with --adapters FOLDER."
    with server.client() as client:
        for response in (
            client.get("/v1/adapters"),
            client.post("/v1/adapters", json={"folder": "spare"}),
            client.delete("/v1/adapters/violin"),
        ):
            assert (response.status_code, response.json()["error"]["message"]) == (403, what)


def test_the_base_stays(shelf: Path, folder_of_adapters: Path) -> None:
    with serving(shelf, "violin", folder=folder_of_adapters) as server, server.client() as client:
        response = client.delete("/v1/adapters/base")
        assert response.status_code == 409
        assert response.json()["error"]["message"] == "base is the base model, which cannot be removed."


# Which runs can share a server.


def test_names_are_the_folders_and_twice_the_same_gets_a_number(shelf: Path) -> None:
    named = name_runs([shelf / "violin", shelf / "lute", shelf / "lute" / ".." / "violin"])
    assert list(named) == ["violin", "lute", "violin-2"]


def test_runs_of_two_bases_are_refused(shelf: Path, tmp_path: Path) -> None:
    other = shutil.copytree(shelf / "lute", tmp_path / "other")
    card = (other / "luthier.json").read_text(encoding="utf-8")
    identity = read_card(other)["base_identity"]
    (other / "luthier.json").write_text(card.replace(identity, "0" * 64), encoding="utf-8")
    with pytest.raises(RunError) as raised:
        name_runs([shelf / "violin", other, shelf / "lute"])
    base = shelf / "base"
    (problem,) = raised.value.problems
    assert problem.where == str(other)
    assert problem.what == (f"was trained on {base}, and {shelf / 'violin'} on {base}: one server has one base model")
    assert problem.fix == "serve it by another luthier serve, with a --port of its own"


def test_the_prompt_of_an_added_adapter_has_its_own_system_prompt(shelf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    shutil.copytree(shelf / "violin", folder / "viola")
    with serving(shelf, "lute", folder=folder) as server, server.client() as client:
        client.post("/v1/adapters", json={"folder": "viola"})
        renderer = server.models.base.renderer
        expected = renderer.prompt_ids([Message("system", "You are a luthier."), Message("user", "Hi")])
        assert server.models.get("viola").prompt_ids([Message("user", "Hi")], None) == expected
