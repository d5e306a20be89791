"""What the GPU backend must compute, bit for bit, as plain functions of a backend.

The cases are in gpu_*_cases.py. tests/test_gpu_interpreter.py runs every one in Triton's interpreter, in a process of
its own (`python gpu_cases.py` with TRITON_INTERPRET=1: Triton decides at import whether it interprets).
tests/test_gpu_device.py runs the same cases on a CUDA device, and larger ones; benchmarks/gpu.py runs them before it
times anything.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import gpu_gradient_cases
import gpu_noise_cases
import gpu_refusal_cases
import gpu_run_cases
import gpu_settlement_cases
from gpu_making import CASES

from samelaw.fast.gpu import GpuKernels

MODULES = (gpu_noise_cases, gpu_settlement_cases, gpu_gradient_cases, gpu_refusal_cases, gpu_run_cases)


class FaultyKernels(GpuKernels):
    """A backend with one mistake in what it hands to a kernel."""

    kernel: str
    change: Callable[[dict[str, Any]], None]

    def launch(self, kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        given = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
        if kernel.__name__ == self.kernel:
            type(self).change(given)
        super().launch(kernel, programs, *(given.pop(name) for name in kernel.arg_names[: len(arguments)]), **given)


def a_fault(name: str, caught_by: str, change: Callable[[dict[str, Any]], None]) -> tuple[type[FaultyKernels], str]:
    return type("Faulty", (FaultyKernels,), {"kernel": name, "change": staticmethod(change)}), caught_by


FAULTS: dict[str, tuple[type[FaultyKernels], str]] = {
    "rounds ignored": a_fault("normals_kernel", "normals_at_every_number_of_rounds", lambda g: g.update(ROUNDS=12)),
    "the first step for every row": a_fault(
        "normals_kernel", "normals_at_far_addresses_and_ragged_dims", lambda g: g.update(step_stride=0)
    ),
    "dense noise at the wrong step": a_fault(
        "subtract_noise_kernel", "dense_noise", lambda g: g.update(step=g["step"] - 1)
    ),
    "one step too few": a_fault(
        "replay_kernel", "settlement_in_every_mode_and_schedule", lambda g: g.update(until=g["until"] - 1)
    ),
    "rate of the first segment": a_fault(
        "replay_kernel",
        "settlement_in_every_mode_and_schedule",
        lambda g: g.update(scales=g["scales"][:1].repeat(len(g["scales"]))),
    ),
    "segments forgotten": a_fault(
        "aggregate_kernel", "settlement_with_tiny_and_large_scales", lambda g: g.update(SEARCH=0)
    ),
    "bridge in another unit": a_fault("bridge_kernel", "bridge_units", lambda g: g.update(unit=g["unit"] + 1)),
    "mean gradients undivided": a_fault(
        "square_norms_kernel", "norms_sums_and_updates", lambda g: g.update(MEAN=False)
    ),
    "weights forgotten in sums": a_fault(
        "contributions_kernel", "norms_sums_and_updates", lambda g: g.update(WEIGHTED=False)
    ),
    "mean reads undivided": a_fault("pool_kernel", "pooled_reads", lambda g: g.update(MEAN=False)),
    "update on another grid": a_fault(
        "apply_kernel", "norms_sums_and_updates", lambda g: g.update(exponent=g["exponent"] + 1)
    ),
}


def main() -> int:
    """Run every case in the interpreter, then every fault against the case that must catch it; one JSON line for each.

    Arguments name the cases or faults to run; all by default.
    """
    wanted = sys.argv[1:] or [*CASES, *FAULTS]
    kernels = GpuKernels("cpu", lanes=256)
    failed = 0
    for name in wanted:
        started = time.perf_counter()
        error = None
        try:
            if name in CASES:
                CASES[name](kernels)
            else:
                faulty, caught_by = FAULTS[name]
                try:
                    CASES[caught_by](faulty("cpu", lanes=256))
                except AssertionError:
                    pass
                else:
                    raise AssertionError(f"{caught_by} did not notice: {name}")
        except Exception:
            error = traceback.format_exc()
            failed += 1
        seconds = round(time.perf_counter() - started, 3)
        print(json.dumps({"case": name, "error": error, "seconds": seconds}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
