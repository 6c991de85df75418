"""docs/security.md: no promise without a test, no test of a promise that the page does not make."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = (
    "tests/pipeline/test_security_code.py",
    "tests/pipeline/test_security_secrets.py",
    "tests/unit/export/test_security.py",
    "tests/unit/hub/test_security.py",
    "tests/unit/server/test_security.py",
)
PROMISE = re.compile(r"- .*[.。] ?`([a-z_]+)`")


@pytest.mark.parametrize("page", ["security.md", "security.zh-CN.md"])
def test_each_promise_is_one_sentence_and_names_its_test(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    promises, _ = re.split(r"\n## (?:Not promised|不承诺的)\n", text)
    lines = [line for line in promises.splitlines() if line.startswith("- ")]
    found = [match[1] for line in lines if (match := PROMISE.fullmatch(line))]
    trees = [ast.parse((ROOT / file).read_text(encoding="utf-8")) for file in FILES]
    tests = [node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert len(found) == len(lines)
    assert sorted(found) == sorted(name.removeprefix("test_") for name in tests if name.startswith("test_"))
