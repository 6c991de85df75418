from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Iterator

import pytest

from luthier.hardware import wheel_index
from luthier.hardware.torch_builds import Build

PAGE = """<!DOCTYPE html><html><body>
<a href="/whl/cpu/torch-2.12.0%2Bcpu-cp312-cp312-manylinux_2_28_x86_64.whl#sha256=1">torch-2.12.0+cpu</a><br/>
<a href="/whl/cpu/torch-2.13.0%2Bcpu-cp312-cp312-manylinux_2_28_x86_64.whl#sha256=2">torch-2.13.0+cpu</a><br/>
<a href="/whl/cpu/torch-2.13.0%2Bcpu-cp313-cp313-win_amd64.whl#sha256=3">torch-2.13.0+cpu</a><br/>
<a href="/whl/cpu/torch-2.13.0%2Bcpu-cp313-cp313t-win_amd64.whl#sha256=4">torch-2.13.0+cpu</a><br/>
</body></html>"""


def build(index: str, version: str = "2.13.0+cpu") -> Build:
    return Build("cpu", (f"torch=={version}",), index, 2)


@pytest.fixture
def index() -> Iterator[str]:
    """A package index that lists torch 2.13.0+cpu for the running Python, on Linux x86_64 and everywhere else."""
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    names = [
        f"torch-2.13.0%2Bcpu-{tag}-{tag}-{system}_{machine}.whl"
        for system in ("manylinux_2_28", "win", "macosx_11_0")
        for machine in ("x86_64", "amd64", "aarch64", "arm64")
    ]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/whl/cpu/torch/"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write("".join(f'<a href="{name}">' for name in names).encode() if found else b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/whl/cpu/"
        server.shutdown()


@pytest.mark.parametrize(
    ("python", "system", "machine", "listed"),
    [
        ((3, 12), "Linux", "x86_64", True),
        ((3, 12), "Linux", "aarch64", False),
        ((3, 12), "Windows", "AMD64", False),
        ((3, 13), "Windows", "AMD64", True),
        ((3, 10), "Linux", "x86_64", False),
    ],
)
def test_a_wheel_is_for_one_python_and_one_machine(
    python: tuple[int, int], system: str, machine: str, listed: bool
) -> None:
    assert wheel_index.lists_wheel(PAGE, build(""), python, system, machine) is listed


def test_another_version_is_not_the_wanted_one() -> None:
    assert not wheel_index.lists_wheel(PAGE, build("", "2.13.0"), (3, 12), "Linux", "x86_64")


def test_indexes_that_answer_that_lack_it_and_that_are_gone(index: str) -> None:
    there, other, moved = build(index), build(index, "2.13.0+cu130"), build(index.replace("whl", "old"))
    gone, own = build("http://127.0.0.1:1/"), build("")
    found = wheel_index.troubles([there, other, moved, gone, own])
    assert list(found) == [there, other, moved, gone]
    assert found[there] == ""
    assert found[other] == "it has no wheel for this Python"
    assert found[moved] == "no answer (Not Found)"
    assert found[gone].startswith("no answer (")


def test_an_index_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()
    monkeypatch.setattr(wheel_index, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(wheel_index, "trouble", lambda build: str(forever.wait(30)))
    silent = build("https://silent.invalid/")
    assert wheel_index.troubles([silent]) == {silent: "no answer within 0.2 s"}
    forever.set()


@pytest.mark.parametrize(
    ("needs", "kind"),
    [
        (["filelock", "nvidia-cudnn-cu13==9.20.0.48; platform_system == 'Linux'"], "cuda"),
        (["filelock", "cuda-toolkit[cublas]==13.0.3; platform_system == 'Linux'"], "cuda"),
        (["filelock", "sympy>=1.13.3", "nvidia-ml-py; extra == 'pynvml'"], "cpu"),
        ([], "cpu"),
    ],
)
def test_the_kind_of_a_wheel_shows_in_what_it_needs(needs: list[str], kind: str) -> None:
    report = {"version": "1", "install": [{"metadata": {"name": "torch", "requires_dist": needs}}]}
    assert wheel_index.kind_of_wheel(json.dumps(report)) == kind


@pytest.mark.parametrize("report", ["", "not json", '{"install": []}'])
def test_no_wheel_has_no_kind(report: str) -> None:
    assert wheel_index.kind_of_wheel(report) == ""
