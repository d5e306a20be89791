"""Every GPU kernel in Triton's interpreter, bit for bit against the NumPy definition, on the CPU.

The cases are in gpu_*_cases.py. They run in one process of their own, because Triton decides when it is imported
whether it interprets or compiles, and the rest of the suite imports it to compile.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("gpu_cases.py")
TEXT = "".join(path.read_text(encoding="utf-8") for path in sorted(SCRIPT.parent.glob("gpu_*cases.py")))
CASES = re.findall(r"^@case\ndef (\w+)", TEXT, re.M)
FAULTS = re.findall(r"^    \"([a-z0-9 ]+)\": a_fault\(", TEXT, re.M)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """Name of a case or fault -> what happened."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert run.returncode in (0, 1), f"the interpreter's process ended with {run.returncode}: {run.stderr[-2000:]}"
    return {line["case"]: line for line in lines}


@pytest.mark.parametrize("name", CASES)
def test_the_interpreted_kernels_have_the_reference_s_bits(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    assert outcomes[name]["error"] is None, outcomes[name]["error"]


@pytest.mark.parametrize("name", FAULTS)
def test_a_backend_with_this_fault_is_caught(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    assert outcomes[name]["error"] is None, outcomes[name]["error"]


def test_nothing_was_left_out(outcomes: dict[str, dict[str, Any]]) -> None:
    assert set(outcomes) == {*CASES, *FAULTS}
    assert len(CASES) >= 25
    assert len(FAULTS) >= 11
