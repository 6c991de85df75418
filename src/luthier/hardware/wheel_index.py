"""Whether a package index really has a torch build for this machine. Standard library only: `start.py` uses it."""

from __future__ import annotations

import json
import os
import platform
import re
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence

from luthier.hardware.torch_builds import Build

PROBE_SECONDS = 4


def troubles(builds: Sequence[Build]) -> dict[Build, str]:
    """For each build that names an index: "" if it lists a wheel for this Python and machine, else what is wrong.

    All are asked at once, in threads, as looking a name up has no time limit of its own.
    """
    asked = [build for build in builds if build.index.startswith("http")]
    found = dict.fromkeys(asked, f"no answer within {PROBE_SECONDS} s")

    def ask(build: Build) -> None:
        found[build] = trouble(build)

    threads = [threading.Thread(target=ask, args=(build,), daemon=True) for build in asked]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PROBE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)


def trouble(build: Build) -> str:
    """What keeps the build's index from giving it to this machine; "" if nothing does."""
    certificates = os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE")
    try:
        context = ssl.create_default_context(cafile=certificates)
        with urllib.request.urlopen(build.index + "torch/", timeout=PROBE_SECONDS, context=context) as answer:
            page = answer.read().decode("utf-8", "replace")
    except OSError as error:
        return f"no answer ({getattr(error, 'reason', error)})"
    machine = (platform.system(), platform.machine())
    return "" if lists_wheel(page, build, sys.version_info[:2], *machine) else "it has no wheel for this Python"


def lists_wheel(page: str, build: Build, python: tuple[int, int], system: str, machine: str) -> bool:
    """Whether torch's page of an index (PEP 503) lists the build's wheel for that Python, system and machine."""
    version = re.escape(build.requirements[-1].partition("==")[2])
    tag = f"cp{python[0]}{python[1]}"
    wheels = re.findall(rf"torch-{version}-{tag}-{tag}-[\w.]+\.whl", page.replace("%2B", "+"))
    word = {"Linux": "linux", "Windows": "win", "Darwin": "macosx"}[system]
    return any(word in wheel and machine.lower() in wheel for wheel in wheels)


def kind_of_wheel(report: str) -> str:
    """ "cuda" or "cpu" from `pip install --dry-run --report` of torch; "" if pip found nothing to install."""
    try:
        needs = json.loads(report)["install"][0]["metadata"].get("requires_dist", [])
    except (ValueError, LookupError):
        return ""
    return "cuda" if any(re.match("nvidia-|cuda-", need) and "extra ==" not in need for need in needs) else "cpu"
