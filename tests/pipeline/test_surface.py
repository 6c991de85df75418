"""The commands and options that exist: frozen here, named rightly in every document, and quick to list."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from driver import SRC, luthier

import luthier as api
from luthier.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.joinpath("docs").glob("*.md")])

# fmt: off
SURFACE = {
    "demo": ["--set", "--fresh", "--plain", "--json"],
    "doctor": ["--json"],
    "fetch": ["REF", "--data", "--revision", "--code", "--json"],
    "data": ["REF", "--model -m", "--system", "--format", "--set", "--rows", "--html", "--fix", "--json"],
    "plan": ["[RECIPE]", "--set", "--fit", "--calibration", "--common", "--json"],
    "train": ["[RECIPE]", "--set", "--fresh", "--help-recipe", "--plain", "--json"],
    "watch": ["RUN", "--plain", "--json"],
    "eval": ["RUN", "--json"],
    "chat": ["REF", "--prompt -p", "--compare", "--system", "--max-new-tokens", "--temperature", "--top-p", "--json"],
    "merge": ["RUN", "--output -o", "--dtype", "--json"],
    "export": ["[RUN]", "--to", "--quant", "--output -o", "--verify", "--json"],
    "push": ["FOLDER", "--to", "--yes", "--public", "--unverified", "--json"],
    "serve": [
        "[RUNS]", "--base", "--model -m", "--dtype", "--host", "--port", "--api-key", "--adapters", "--no-system",
        "--max-batch", "--cache", "--queue", "--max-tokens", "--max-body", "--drain", "--allow-host", "--allow-origin",
        "--log-prompts", "--json",
    ],
    "runs": ["[FOLDER]", "--json"],
    "report": ["RUN", "--output -o", "--lang", "--json"],
}
# fmt: on

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def shown(parameter: Any) -> str:
    if parameter.param_type_name == "option":
        return " ".join(parameter.opts)
    name: str = parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def test_the_commands_and_their_options() -> None:
    found = {name: [shown(each) for each in command.params] for name, command in COMMANDS.items()}
    assert {name: [each for each in each_of if each != "--help"] for name, each_of in found.items()} == SURFACE
    assert list(found) == list(SURFACE)


def test_every_command_and_option_says_what_it_does() -> None:
    for name, command in COMMANDS.items():
        assert command.help, name
        assert [each.name for each in command.params if not each.help] == []


def test_every_command_has_json() -> None:
    assert [name for name, options in SURFACE.items() if "--json" not in options] == []


def test_help_names_every_command() -> None:
    done = luthier("--help")
    assert (done.status, done.err) == (0, "")
    assert re.findall(r"^  (\w+)  ", done.out.partition("Commands:")[2], flags=re.MULTILINE) == list(SURFACE)


@pytest.mark.parametrize("wrong", [("nosuch",), ("train", "x.yaml", "--nosuch"), ("runs", "a", "b")])
def test_what_does_not_exist_is_bad_input(wrong: tuple[str, ...]) -> None:
    done = luthier(*wrong)
    assert (done.status, done.out) == (2, "")
    assert wrong[-1] in done.err


# The Python API.


def test_the_names_of_the_package() -> None:
    assert api.__all__ == ["plan", "train"]
    assert api.__version__ == "0.1.0"
    assert api.train is importlib.import_module("luthier.training.run").train
    with pytest.raises(AttributeError, match=r"^module 'luthier' has no attribute 'tune'$"):
        _ = api.tune


HEAVY = ["torch", "transformers", "peft", "accelerate", "pyarrow", "numpy", "plotly"]
SLOW = ["rich", "pydantic"]
"""What a command may load, but not the list of commands: each takes as long as all the rest of it."""


def heavy_after(code: str, *arguments: object) -> list[str]:
    """Which of the heavy and slow libraries a fresh Python has loaded after it ran the code."""
    report = f"import sys; sys.stdout.write('\\n' + ' '.join(n for n in {HEAVY + SLOW} if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}", *map(str, arguments)],
        env={"PYTHONPATH": str(SRC), "PYTHONUTF8": "1", "PATH": "", "HOME": str(ROOT)},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rpartition("\n")[2].split()


RUN_EACH = """
import contextlib, sys
from luthier.cli.main import main
for arguments in {arguments}:
    sys.argv = ["luthier", *arguments]
    with contextlib.suppress(SystemExit):
        main()
"""


def test_what_needs_no_torch_loads_none(tmp_path: Path) -> None:
    """Help, lists, and a recipe that is wrong."""
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text("model: a/b\n", encoding="utf-8")
    helps = [[name, "--help"] for name in SURFACE]
    quick = [["runs", str(tmp_path)], ["report", str(tmp_path)], ["train", str(recipe)], ["train", "--help-recipe"]]
    assert heavy_after("import luthier") == []
    assert heavy_after(RUN_EACH.format(arguments=[["--help"]])) == []
    assert set(heavy_after(RUN_EACH.format(arguments=[*helps, *quick]))) <= set(SLOW)


# The documents.


def typed(page: Path) -> Iterator[str]:
    """What a page gives to type: lines of fenced or indented code, and code within a sentence."""
    text = page.read_text(encoding="utf-8")
    fence = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
    fenced = [block for language, block in fence.findall(text) if language in ("", "bash", "sh", "console")]
    prose = fence.sub("", text)
    indented = re.findall(r"^ {4}(\S.*)$", prose, flags=re.MULTILINE)
    lines = [*(line for block in fenced for line in block.splitlines()), *indented, *re.findall(r"`([^`\n]+)`", prose)]
    for line in lines:
        # A line's explanation stands behind two spaces or a #, and what is done with its output behind a >.
        yield re.split(r"\s{2,}|\s#|\s>", line.strip().removeprefix("$ "))[0]


def commands_of(page: Path) -> list[list[str]]:
    """The luthier commands among them, as words; `start.py`'s own option and commands are left out."""
    found = []
    for line in typed(page):
        started = re.match(r"(?:luthier|python start\.py(?: --torch \S+)?) (.+)", line)
        if started and not re.match(r"COMMAND|命令|…|(?:test|bench)\b", started[1]):
            found.append(shlex.split(started[1]))
    return found


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_in_the_documents_can_be_typed(page: Path) -> None:
    for name, *arguments in commands_of(page):
        if name == "--help":
            continue
        assert name in COMMANDS, f"luthier {name}"
        if arguments:  # without any, the sentence speaks of the command
            COMMANDS[name].make_context(name, [each for each in arguments if each != "--help"])


def test_the_documents_name_every_command() -> None:
    english = {name for page in PAGES if ".zh-CN" not in page.name for name, *_ in commands_of(page)}
    chinese = {name for page in PAGES if ".zh-CN" in page.name for name, *_ in commands_of(page)}
    assert english - {"--help"} == chinese - {"--help"} == set(SURFACE)


def test_what_the_documents_test_would_catch(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    lines = [
        "See `luthier runs`. Luthier luthier trains.",
        "```yaml",
        "model: x",
        "```",
        "```",
        "python start.py --torch cpu demo --fresh   does it again",
        "luthier eval x  # why",
        "```",
        "",
        "    luthier merge x --output",
    ]
    page.write_text("\n".join(lines), encoding="utf-8")
    assert commands_of(page) == [["demo", "--fresh"], ["eval", "x"], ["merge", "x", "--output"], ["runs"]]
    with pytest.raises(Exception, match="requires an argument"):
        COMMANDS["merge"].make_context("merge", ["x", "--output"])
