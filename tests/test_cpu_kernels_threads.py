"""How the CPU kernels take threads, and where their compiled code is kept."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from samelaw.contract.errors import InputError
from samelaw.fast.cpu import CpuKernels, compiled
from samelaw.fast.cpu.compiled import Team


@pytest.mark.parametrize("threads", [0, 1, numba.config.NUMBA_NUM_THREADS])
def test_small_work_wakes_no_thread_and_the_process_keeps_its_setting(threads):
    before, seen = numba.get_num_threads(), []
    team = Team(threads)
    team.run(1, lambda: seen.append(numba.get_num_threads()))
    team.run(10**9, lambda: seen.append(numba.get_num_threads()))
    assert seen == [1, threads or before]
    with pytest.raises(ZeroDivisionError):
        team.run(1, lambda: 1 // 0)
    assert numba.get_num_threads() == before


@pytest.mark.parametrize("threads", [-1, numba.config.NUMBA_NUM_THREADS + 1])
def test_more_threads_than_the_process_has_are_refused(threads):
    with pytest.raises(InputError, match="threads"):
        CpuKernels(threads)


def test_the_cache_is_named_after_every_source_so_that_no_edit_meets_stale_code(tmp_path, monkeypatch):
    folder = Path(compiled.__file__).parent
    for source in folder.glob("*.py"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
    original = compiled.sources_digest()
    for source in sorted(tmp_path.glob("*.py")):
        text = source.read_bytes()
        source.write_bytes(text + b"\n")
        assert compiled.sources_digest() != original, source.name
        source.write_bytes(text)
    assert compiled.sources_digest() == original


@pytest.mark.parametrize("writable", [True, False])
def test_kernels_run_where_the_installation_is_read_only(tmp_path, writable):
    """With no writable folder at all, each start compiles anew instead of failing."""
    home = tmp_path / "home"
    home.mkdir()
    script = (
        "import os, torch\n"
        "real = os.access\n"
        f"os.access = lambda p, *a, **k: str(p).startswith({str(home)!r}) and {writable} and real(p, *a, **k)\n"
        "from samelaw.fast.cpu import CpuKernels, compiled\n"
        "history = torch.zeros(3, dtype=torch.int32)\n"
        "print(CpuKernels().due_rows(history, torch.tensor([2]), 1)[0].tolist(), compiled.CACHE)\n"
    )
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home), "NUMBA_CACHE_DIR": ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    rows, cache = done.stdout.split(maxsplit=1)
    assert rows == "[2]"
    assert cache.startswith(str(home)) if writable else cache.strip() == "None"


COMPILED_FOR_ANOTHER_MACHINE = """
import numba
import numpy as np
from numba import float32, float64, uint32, void
from samelaw.fast.cpu.blocks import pay_block, product_lanes, split_block, subtract_block
from samelaw.fast.cpu.noise import normal_blocks

@numba.njit(void(uint32[::1], uint32[:, ::1], float32[:, ::1], float32[::1], float64[::1], float64[::1]))
def kernel(key, counters, draws, weights, paths, lanes):
    normal_blocks(key, 12, counters, draws)
    subtract_block(weights, 0, draws, 1, np.float32(0.5))
    split_block(paths, 0, draws, 1, 0.5, 0.25, 16, 32, 48, 1.0)
    pay_block(weights, 0, paths, 0, 0.25)
    product_lanes(weights, 0, 8, 1, lanes)

print(*kernel.inspect_asm().values())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86 assembly")
@pytest.mark.parametrize(
    ("machine", "features", "register"),
    [
        ("skylake-avx512", "+avx512f,+avx512vl,+avx512dq,+avx512bw,+avx512cd,+fma,+prefer-256-bit", "zmm"),
        ("haswell", "+avx2,+fma", "ymm"),
    ],
)
def test_kernels_take_the_full_vector_width_and_fuse_nothing(machine, features, register):
    """Even where the compiler would rather use half the width; and a fused multiply-add would change bits."""
    environment = {**os.environ, "NUMBA_CPU_NAME": machine, "NUMBA_CPU_FEATURES": features}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED_FOR_ANOTHER_MACHINE],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert len(re.findall(rf"%{register}\d", done.stdout)) > 1000
    assert "vsqrtps" in done.stdout
    assert not re.search(r"vfn?m(add|sub)", done.stdout)
