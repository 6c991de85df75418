from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

from luthier.hardware.probe import instructions_that_matter, probe, read_cpuinfo

XEON = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8
"""
GRAVITON = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd sve bf16 i8mm\nCPU implementer\t: 0x41\n"


def test_cpuinfo_of_a_cpu_that_multiplies_bfloat16() -> None:
    name, flags = read_cpuinfo(XEON)
    assert name == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert instructions_that_matter(flags) == (
        "avx2",
        "avx512f",
        "avx512_bf16",
        "avx512_fp16",
        "amx_bf16",
        "amx_tile",
    )


def test_cpuinfo_of_an_arm_cpu_names_no_model() -> None:
    name, flags = read_cpuinfo(GRAVITON)
    assert name == ""
    assert instructions_that_matter(flags) == ("neon", "bf16", "sve")


def test_this_machine() -> None:
    machine = probe()
    assert machine.system == platform.system()
    assert machine.python == platform.python_version()
    assert 1 <= machine.cores <= machine.threads
    assert 0 < machine.memory_available_bytes <= machine.memory_bytes
    assert machine.disk_free_bytes > 0
    assert json.loads(json.dumps(machine.to_json()))["cores"] == machine.cores


def test_the_probe_imports_no_torch() -> None:
    code = "import sys; from luthier.hardware.probe import probe; probe(); print('torch' in sys.modules)"
    source = str(Path(__file__).parents[3] / "src")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=source, check=True)
    assert done.stdout.strip() == "False"
