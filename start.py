"""Sets Luthier up in `.venv` and runs it. Needs nothing but Python 3.10 or newer.

    python start.py demo                    a first tuned model, in minutes
    python start.py test                    lint, types and all tests of the project
    python start.py bench                   speed and memory against the tutorial's script and peers (bench --help)
    python start.py COMMAND …               any luthier command: doctor, data, train, chat, …
    python start.py --torch BUILD COMMAND   choose the torch build yourself (kept for later starts): auto, cpu, cuda,
                                            rocm-gfx1151 (your chip's gfx name), or keep: the torch of the Python
                                            that runs this file

The first start installs; later ones run at once. A changed pyproject.toml is installed by the next start, and an
install that was interrupted begins again. pip's own settings (mirror, proxy, cache) hold.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(f"Luthier needs Python 3.10 or newer; this is {sys.version.split()[0]}")

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "src"))  # these modules need the standard library alone

from luthier.errors import InputError, LuthierError, Problem  # noqa: E402
from luthier.hardware.gpus import find_gpus  # noqa: E402
from luthier.hardware.torch_builds import ASKED, OWN_INDEX, Build, Plan, load_table, plan  # noqa: E402
from luthier.hardware.wheel_index import kind_of_wheel, troubles  # noqa: E402
from luthier.install_view import Step, activity, say  # noqa: E402

VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "installed.json"  # written last: its presence means that the install is complete
LOG = VENV / "install.log"
PIP = [str(PYTHON), "-m", "pip", "install", "--no-compile"]  # Python compiles what is used when it is first used
TORCH_PIN = VENV / "torch.txt"
INPUTS = [ROOT / "pyproject.toml", ROOT / "constraints.txt", ROOT / "src/luthier/hardware/torch_builds.json"]
PIP_WITH_RAW_PROGRESS = (24, 1)
IN_TWO = ["-n", "2", "--dist", "loadfile"]  # half the time; a file stays together, as its tests share what they train


def main(arguments: Sequence[str]) -> int:
    torch, command = split_arguments(arguments)
    if not command:
        print(__doc__)
        return 0
    with only_one_start() as lock:
        install(torch, with_tests=command[0] == "test", lock=lock)
    return run_checks(command[1:]) if command[0] == "test" else run_luthier(command)


def split_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """(--torch's value or "", the command). What comes after the command's name belongs to the command."""
    rest, torch = list(arguments), ""
    while rest and rest[0].startswith("-"):
        option, equals, value = rest.pop(0).partition("=")
        if option in ("-h", "--help"):
            return "", []
        if option != "--torch":
            fix = "put the command first, its options behind"
            raise InputError(Problem(option, "start.py has no such option", fix))
        torch = value if equals else (rest.pop(0) if rest else "")
        if not torch:
            raise InputError(Problem("--torch", "no build given", f"give one of: {ASKED}"))
    return torch, rest


# Installing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stamp:
    """What a complete `.venv` holds."""

    place: str  # checkout and Python; a venv works for no other
    inputs: str  # hash of the files that say what to install
    asked: str  # as --torch
    torch: str  # the build that was taken
    tests: bool  # whether the test tools are there


def read_stamp() -> Stamp | None:
    """The stamp of a complete install in this place, else None."""
    try:
        stamp = Stamp(**json.loads(STAMP.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return stamp if stamp.place == place() and PYTHON.exists() else None


def place() -> str:
    return f"{ROOT} with Python {platform.python_version_tuple()[:2]} of {sys.base_prefix}"


def hash_of_inputs() -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in INPUTS)).hexdigest()


def install(wanted: str, with_tests: bool, lock: IO[str]) -> None:
    """Bring `.venv` to what pyproject.toml, constraints.txt and `wanted` (--torch, or "") ask for."""
    stamp, inputs = read_stamp(), hash_of_inputs()
    if stamp and wanted != "auto" and wanted in ("", stamp.asked):
        if stamp.inputs == inputs and (stamp.tests or not with_tests):
            return
        wanted, torch = stamp.asked, stamp.torch
    else:
        wanted, torch = wanted or "auto", ""
    began, steps = time.monotonic(), Steps(lock, total=2 if torch else 4)
    with steps.step("Look at the hardware") as step:
        ways = kept_torch() if wanted == "keep" else plan(wanted, find_gpus(), platform.system(), sys.version_info[:2])
        step.result, step.notes = ways.reason, list(ways.notes)
    STAMP.unlink(missing_ok=True)
    if torch not in map(str, ways.builds):  # a new torch gets a new .venv: no half of the old one can stay behind
        steps.total = 4
        make_venv(ways.builds[0], steps)
        torch = install_torch(ways.builds, steps)
    tests = with_tests or (stamp is not None and stamp.tests)
    with steps.step("Install Luthier" + (" and its test tools" if tests else "")):
        steps.pip("-c", "constraints.txt", "-c", str(TORCH_PIN), "-e", ".[test]" if tests else ".")
    STAMP.write_text(json.dumps(asdict(Stamp(place(), inputs, wanted, torch, tests))), encoding="utf-8")
    say(f"Installed in {time.monotonic() - began:.0f} s. The next start runs at once.\n")


def kept_torch() -> Plan:
    """The torch of the Python that runs this file."""
    try:
        torch = importlib.metadata.distribution("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = None
    if torch is None or sys.prefix == str(VENV):
        fix = "start with the Python that has your torch: path/to/that/python start.py --torch keep …"
        raise InputError(Problem("--torch keep", f"{sys.executable} has no torch of its own", fix))
    oldest = load_table()["oldest"]
    if numbers(torch.version) < numbers(oldest):
        raise InputError(Problem("--torch keep", f"torch {torch.version} is older than {oldest}", "update it"))
    folder = str(torch.locate_file(""))
    return Plan((Build("keep", (f"torch=={torch.version}",), folder, 1),), f"--torch keep: {sys.executable}")


def make_venv(build: Build, steps: Steps) -> None:
    """A new `.venv`, if there is room for the build and its libraries."""
    with steps.step("Make .venv") as step:
        free = shutil.disk_usage(ROOT).free / 1e9
        if free < build.disk_gb:
            what = f"{free:.1f} GB are free, and {build} takes up to {build.disk_gb} GB with its libraries"
            raise InputError(Problem(str(ROOT), what, "make room, or use --torch cpu"))
        # If this runs in .venv itself, the Python that .venv was made with makes it again.
        maker = getattr(sys, "_base_executable", sys.executable) if sys.prefix == str(VENV) else sys.executable
        step.activity = "removing the old one" if VENV.exists() else ""
        if steps.run([maker, "-m", "venv", "--clear", str(VENV)]):
            fix = "on Debian and Ubuntu: sudo apt install python3-venv; then start again"
            raise InputError(Problem(".venv", steps.ending(), fix))
        if pip_version() < PIP_WITH_RAW_PROGRESS:
            with contextlib.suppress(InputError):  # the old pip works too, only without showing its progress
                steps.pip("--upgrade", "pip", "--retries", "1", "--timeout", "10")


def install_torch(builds: Sequence[Build], steps: Steps) -> str:
    """Install the first of the builds that can be had, and say why the better ones could not."""
    with steps.step("Install torch") as step:
        missing = troubles(builds)
        for build in builds:
            trouble = missing.get(build, "") if build.index else trouble_with_own_index(build, steps)
            if trouble:
                step.notes.append(f"{build}: {trouble}")
                continue
            if build.kind == "keep":
                (site_packages() / "kept_torch.pth").write_text(build.index + "\n", encoding="utf-8")
            else:
                steps.pip(*(["--extra-index-url", build.index] if build.index else []), *build.requirements)
            ask = [str(PYTHON), "-c", "import importlib.metadata as m; print(m.version('torch'))"]
            version = subprocess.check_output(ask, encoding="utf-8").strip()
            TORCH_PIN.write_text(f"torch=={version}", encoding="utf-8")  # so that no later step replaces it
            step.result = f"{version} from {build.index or OWN_INDEX}"
            return str(build)
        what = "no build that fits this machine can be had:\n    " + "\n    ".join(step.notes)
        fix = "let pip reach one of those addresses; or install torch yourself and start with --torch keep"
        raise InputError(Problem("torch", what, fix))


def trouble_with_own_index(build: Build, steps: Steps) -> str:
    """On Linux the package index may hold torch's CUDA or CPU build: "" if it is the wanted one, else what is wrong."""
    if platform.system() != "Linux":
        return ""
    report = VENV / "torch.json"
    # fast-deps reads a wheel's metadata without downloading the wheel, from indexes that do not serve it apart
    steps.run([*PIP, "--dry-run", "--use-feature=fast-deps", "--no-deps", "--report", str(report), *build.requirements])
    kind = kind_of_wheel(report.read_text(encoding="utf-8") if report.exists() else "")
    cuda = f"it holds the CUDA build, up to {load_table()['cuda'][0]['disk_gb']} GB; --torch cuda takes it"
    return "" if kind == build.kind else {"": "not there", "cuda": cuda, "cpu": "it holds the CPU build"}[kind]


def site_packages() -> Path:
    return VENV / ("Lib/site-packages" if os.name == "nt" else f"lib/python3.{sys.version_info[1]}/site-packages")


def pip_version() -> tuple[int, ...]:
    return max((numbers(folder.name)[:2] for folder in site_packages().glob("pip-*.dist-info")), default=(0, 0))


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


# Steps ---------------------------------------------------------------------------------------------------------------


class Steps:
    """Runs programs as numbered steps, with their output in `.venv/install.log`."""

    def __init__(self, lock: IO[str], total: int) -> None:
        self.lock, self.number, self.total = lock, 0, total
        self.lines: list[str] = []
        self.current = Step("")

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        self.number += 1
        self.current = Step(f"[{self.number}/{self.total}] {title}")
        self.current.show()
        try:
            yield self.current
        except BaseException:
            self.current.notes.clear()
            self.current.end("not done")
            raise
        self.current.end(self.current.result)

    def pip(self, *arguments: str) -> None:
        """`pip install` in `.venv`. Raises InputError with pip's last words if it fails."""
        raw = ["--progress-bar", "raw"] if pip_version() >= PIP_WITH_RAW_PROGRESS else []
        if self.run([*PIP, *arguments, *raw]):
            fix = f"if the network failed, start again; the whole output is in {LOG}"
            raise InputError(Problem(f"pip install {' '.join(arguments)}", self.ending(), fix))

    def ending(self) -> str:
        return "failed:\n    " + "\n    ".join(self.lines[-12:])

    def run(self, command: Sequence[str]) -> int:
        """Run to the end with the step's line alive; the exit status.

        The program holds the lock too: should this process be killed, no other start works beside it.
        """
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            pass_fds=() if os.name == "nt" else (self.lock.fileno(),),
        )
        done = threading.Event()
        clock = threading.Thread(target=self.current.live, args=(done,), daemon=True)
        clock.start()
        try:
            for line in process.stdout or ():
                self.current.activity = activity(line) or self.current.activity
                if not line.startswith("Progress "):
                    self.lines.append(line.rstrip())
            return process.wait()
        finally:
            process.kill()
            process.wait()
            done.set()
            clock.join()
            if VENV.is_dir():
                LOG.write_text("\n".join(self.lines), encoding="utf-8")


@contextlib.contextmanager
def only_one_start() -> Iterator[IO[str]]:
    """Wait until no other start is installing into the same `.venv`. The system frees the lock of a dead process."""
    with (ROOT / ".venv.lock").open("w") as lock:
        if not try_lock(lock):
            say("Another start is installing; this one waits for it.")
            while not try_lock(lock):
                time.sleep(0.2)
        yield lock


def try_lock(lock: IO[str]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# Running -------------------------------------------------------------------------------------------------------------


def run_luthier(command: Sequence[str]) -> int:
    """Become the command. Windows cannot replace a process: there this one waits and leaves Ctrl-C to it."""
    program = [str(BIN / "luthier") + ".exe" * (os.name == "nt"), *command]
    if command[0] == "bench":
        program = [str(PYTHON), "-m", "benchmarks", *command[1:]]
        os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["LUTHIER_COMMAND"] = f"{Path(sys.executable).stem} {Path(sys.argv[0]).name}"  # what to type next
    if os.name == "posix":
        os.execv(program[0], program)
    with subprocess.Popen(program) as process:
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return process.wait()


def run_checks(pytest_arguments: Sequence[str]) -> int:
    """Lint, types and tests: all of them, whatever the first ones say."""
    checks = {
        "ruff check": ["ruff", "check"],
        "ruff format": ["ruff", "format", "--check"],
        "mypy": ["mypy"],
        "pytest": ["pytest", *IN_TWO, *pytest_arguments],
    }
    failed = []
    for name, check in checks.items():
        say(f"── {name}")
        if subprocess.call([str(PYTHON), "-m", *check], cwd=ROOT):
            failed.append(name)
    say(f"FAILED: {', '.join(failed)}" if failed else f"All passed: {', '.join(checks)}")
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for consoles that cannot show every character of the usage
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        say("\nStopped. Start again to go on.")
        sys.exit(3)
    except LuthierError as error:
        say(str(error))
        sys.exit(error.exit_status)
