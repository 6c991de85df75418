"""Idle threads of products are ended, and come again."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, torch
from luthier.hardware.threads import release_threads
torch.set_num_threads(2)
def threads():
    return len(os.listdir("/proc/self/task"))
def product():
    a = torch.randn(512, 512)
    return float((a @ a).sum() + (a * 2 + a.exp()).sum())
before = threads()
product()
working = threads()
release_threads()
for _ in range(200):
    if threads() == before:
        break
    __import__("time").sleep(0.01)
print(working - before, threads() - before)
product()
print(threads() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is what PyTorch brings on Linux")
def test_idle_threads_are_ended_and_come_again() -> None:
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "0", "1"]
