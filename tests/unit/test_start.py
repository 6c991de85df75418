"""start.py: its decisions with the installing replaced by a record, and its start of a command for real."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from luthier.errors import InputError, Problem
from luthier.hardware.parse import Gpu
from luthier.hardware.torch_builds import Build

ROOT = Path(__file__).parents[2]
CPU_BUILD = "torch==2.13.0+cpu from https://download.pytorch.org/whl/cpu/"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("start", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["start"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what start.py needs."""
    for name in ("start.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src/luthier/hardware", tmp_path / "src/luthier/hardware")
    for name in ("__init__.py", "errors.py", "install_view.py", "secrets.py"):
        shutil.copy(ROOT / "src/luthier" / name, tmp_path / "src/luthier")
    return tmp_path


class Machine:
    """start.py on a Linux machine with no GPU, whose installing only writes down what it would do."""

    def __init__(self, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "path", list(sys.path))
        self.start = load(checkout / "start.py")
        self.done: list[str] = []
        self.gpus: tuple[Gpu, ...] = ()
        self.fails = ""
        monkeypatch.setattr(self.start.platform, "system", lambda: "Linux")
        monkeypatch.setattr(self.start, "find_gpus", lambda: self.gpus)
        monkeypatch.setattr(self.start, "make_venv", self.make_venv)
        monkeypatch.setattr(self.start, "install_torch", self.install_torch)
        monkeypatch.setattr(self.start.Steps, "pip", lambda steps, *arguments: self.act(f"pip {arguments[-1]}"))

    def act(self, what: str) -> None:
        self.done.append(what)
        if what == self.fails:
            raise InputError(Problem("pip", "no network", "start again"))

    def make_venv(self, build: Build, steps: object) -> None:
        self.act("new .venv")
        self.start.PYTHON.parent.mkdir(parents=True, exist_ok=True)
        self.start.PYTHON.touch()

    def install_torch(self, builds: tuple[Build, ...], steps: object) -> str:
        self.act(f"torch {builds[0].kind}")
        return str(builds[0])

    def install(self, torch: str = "", with_tests: bool = False) -> list[str]:
        """What one start did."""
        self.done = []
        self.start.install(torch, with_tests, io.StringIO())
        return self.done


@pytest.fixture
def machine(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(checkout, monkeypatch)


def test_the_first_start_installs_and_the_second_does_nothing(machine: Machine) -> None:
    assert machine.install() == ["new .venv", "torch cpu", "pip ."]
    stamp = json.loads(machine.start.STAMP.read_text())
    assert (stamp["asked"], stamp["torch"], stamp["tests"]) == ("auto", CPU_BUILD, False)
    assert machine.install() == []


def test_the_test_tools_are_installed_for_test_and_stay(machine: Machine) -> None:
    machine.install()
    assert machine.install(with_tests=True) == ["pip .[test]"]
    assert machine.install(with_tests=True) == []
    assert machine.install() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_reinstalls_the_package_and_keeps_torch(machine: Machine, name: str) -> None:
    machine.install(with_tests=True)
    with (machine.start.ROOT / name).open("a") as file:
        file.write("# changed\n")
    assert machine.install() == ["pip .[test]"]
    assert machine.install() == []


def test_an_interrupted_install_begins_again(machine: Machine) -> None:
    machine.fails = "pip ."
    with pytest.raises(InputError):
        machine.install()
    assert not machine.start.STAMP.exists()
    machine.fails = ""
    assert machine.install() == ["new .venv", "torch cpu", "pip ."]


def test_an_interrupted_update_begins_again(machine: Machine) -> None:
    machine.install()
    machine.fails = "pip .[test]"
    with pytest.raises(InputError):
        machine.install(with_tests=True)
    machine.fails = ""
    assert machine.install() == ["new .venv", "torch cpu", "pip ."]


@pytest.mark.parametrize("text", ["", "{}", '{"place": "elsewhere"', '["a list"]'])
def test_a_damaged_stamp_counts_as_none(machine: Machine, text: str) -> None:
    machine.install()
    machine.start.STAMP.write_text(text)
    assert machine.install() == ["new .venv", "torch cpu", "pip ."]


def test_a_missing_python_in_the_venv_makes_it_new(machine: Machine) -> None:
    machine.install()
    machine.start.PYTHON.unlink()
    assert machine.install() == ["new .venv", "torch cpu", "pip ."]


def test_a_moved_checkout_makes_it_new(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install()
    monkeypatch.setattr(machine.start, "place", lambda: "another folder, another Python")
    assert machine.install()[0] == "new .venv"


def test_an_explicit_torch_is_kept_until_another_is_asked_for(machine: Machine) -> None:
    machine.gpus = (Gpu("Tesla T4", "nvidia", "7.5", driver="580.1"),)
    assert machine.install("cpu") == ["new .venv", "torch cpu", "pip ."]
    assert machine.install() == []
    assert machine.install("cpu") == []
    assert machine.install("auto") == ["new .venv", "torch cuda", "pip ."]


def test_a_new_gpu_is_found_by_torch_auto(machine: Machine) -> None:
    machine.install()
    machine.gpus = (Gpu("AMD Radeon 8060S", "amd", "gfx1151"),)
    assert machine.install() == []
    expected = "torch rocm" if sys.version_info >= (3, 11) else "torch cpu"  # AMD has no wheels for Python 3.10
    assert machine.install("auto") == ["new .venv", expected, "pip ."]


def test_a_build_that_does_not_exist_touches_nothing(machine: Machine) -> None:
    machine.install()
    with pytest.raises(InputError):
        machine.install("cudda")
    assert machine.done == []
    assert machine.start.STAMP.exists()


def test_keep_names_the_torch_of_the_running_python(machine: Machine) -> None:
    import torch

    (build,) = machine.start.kept_torch().builds
    assert build.requirements == (f"torch=={torch.__version__}",)
    assert Path(build.index) == Path(torch.__file__).parents[1]


@pytest.mark.parametrize(
    ("index", "kind", "trouble"),
    [
        ("cpu", "cpu", ""),
        ("cpu", "cuda", "it holds the CUDA build, up to 8 GB; --torch cuda takes it"),
        ("cuda", "cpu", "it holds the CPU build"),
        ("cuda", "cuda", ""),
        ("cpu", "", "not there"),
    ],
)
def test_gigabytes_of_cuda_are_never_taken_unasked(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, index: str, kind: str, trouble: str
) -> None:
    def report(steps: object, command: list[str]) -> int:
        needs = {"cuda": ["nvidia-cudnn-cu13"], "cpu": ["sympy"]}.get(kind)
        found = [{"metadata": {"requires_dist": needs}}] if needs else []
        Path(command[command.index("--report") + 1]).write_text(json.dumps({"install": found}))
        return 0

    machine.install()
    monkeypatch.setattr(machine.start.Steps, "run", report)
    steps = machine.start.Steps(io.StringIO(), 4)
    build = Build(index, ("torch==2.13.0",), "", 2)
    assert machine.start.trouble_with_own_index(build, steps) == trouble


@pytest.mark.parametrize(
    ("arguments", "torch", "command"),
    [
        ([], "", []),
        (["--help"], "", []),
        (["demo"], "", ["demo"]),
        (["--torch", "cpu", "train", "r.yaml", "--set", "a=1"], "cpu", ["train", "r.yaml", "--set", "a=1"]),
        (["--torch=rocm-gfx1151", "doctor"], "rocm-gfx1151", ["doctor"]),
        (["chat", "--torch", "x", "--help"], "", ["chat", "--torch", "x", "--help"]),
    ],
)
def test_arguments_behind_the_command_belong_to_it(
    machine: Machine, arguments: list[str], torch: str, command: list[str]
) -> None:
    assert machine.start.split_arguments(arguments) == (torch, command)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--quiet", "demo"], "--quiet: start.py has no such option\n  fix: put the command first, its options behind"),
        (["--torch"], "--torch: no build given\n  fix: give one of: auto, cpu, cuda, keep, or rocm-gfx1151 with your"),
    ],
)
def test_an_unknown_option_is_named(machine: Machine, arguments: list[str], text: str) -> None:
    with pytest.raises(InputError) as caught:
        machine.start.split_arguments(arguments)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Progress 104857600 of 526600000", "105 of 527 MB"),
        ("  Downloading torch-2.13.0-cp311.whl (526.6 MB)", "downloading torch-2.13.0-cp311.whl"),
        ("Processing /wheels/torch-2.13.0.whl", "processing torch-2.13.0.whl"),
        ("Installing collected packages: mpmath, sympy, torch", "unpacking 3 packages"),
        ("Requirement already satisfied: jinja2", ""),
        ("Progress 1 of 0", ""),
    ],
)
def test_what_pip_does_in_a_few_words(machine: Machine, line: str, shown: str) -> None:
    assert machine.start.activity(line) == shown


def test_the_second_start_waits_for_the_first(machine: Machine) -> None:
    with machine.start.only_one_start(), (machine.start.ROOT / ".venv.lock").open("w") as other:
        assert not machine.start.try_lock(other)
    with (machine.start.ROOT / ".venv.lock").open("w") as other:
        assert machine.start.try_lock(other)


def test_it_needs_the_standard_library_alone(checkout: Path) -> None:
    done = subprocess.run([sys.executable, "-I", "-S", "start.py"], cwd=checkout, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Sets Luthier up in `.venv` and runs it.")


def pretend_installed(checkout: Path, monkeypatch: pytest.MonkeyPatch, code: str, program: str = "luthier") -> None:
    """A complete .venv whose `luthier`, or other program, is this Python code."""
    Machine(checkout, monkeypatch).install()
    script = checkout / ".venv/bin" / program
    script.write_text(f"#!{sys.executable}\n{code}")
    script.chmod(0o755)


def test_the_command_gets_its_arguments_and_its_exit_status_comes_back(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_installed(checkout, monkeypatch, "import sys; print(sys.argv[1:]); sys.exit(7)")
    command = [sys.executable, str(checkout / "start.py"), "train", "r.yaml", "--set", "a=1"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=checkout.parent, capture_output=True, text=True)
    assert time.monotonic() - began < 3
    assert (done.returncode, done.stdout) == (7, "['train', 'r.yaml', '--set', 'a=1']\n")
    assert done.stderr == ""


def test_bench_runs_the_benchmarks_from_anywhere(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, sys; print(sys.argv[1:], os.environ['PYTHONPATH'])"
    pretend_installed(checkout, monkeypatch, code, program="python")
    command = [sys.executable, str(checkout / "start.py"), "bench", "--job", "long"]
    done = subprocess.run(command, cwd=checkout.parent, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"['-m', 'benchmarks', '--job', 'long'] {checkout}\n", "")


def test_ctrl_c_reaches_the_command_and_prints_no_traceback(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys, time\n"
        "try:\n    print('ready', flush=True)\n    time.sleep(30)\n"
        "except KeyboardInterrupt:\n    print('saved', flush=True)\n    sys.exit(3)\n"
    )
    pretend_installed(checkout, monkeypatch, program)
    with subprocess.Popen(
        [sys.executable, "start.py", "train"], cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (3, "saved\n", "")


def test_ci_calls_exactly_start_py_test() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert lines[-1] == "exec python3 start.py test"
    assert os.access(ROOT / ".ci/run", os.X_OK)
