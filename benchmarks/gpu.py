"""What does private training of a large table cost on a GPU, and are the bits still those of the definition there?

Expect: aggregate within a few times non-private sparse SGD at any table size, because both touch the rows of a batch
alone; eager grows with the table, and its floor is two passes over it (bytes / copy bandwidth); bridge a few tens of
draws a row; replay as dear as eager over a whole run, since it makes the same draws. Normals: the generator is bound by
integer arithmetic, so some times slower than torch.randn, which is not cryptographic and cannot be addressed.
Compare: every system on the same table shape, batches and steady-state history, interleaved in one process, by CUDA
events; medians and spread.

    python benchmarks/gpu.py [--rows N ...] [--repeats N] [--out FILE]

Bits come first: every case of tests/gpu_cases.py, then each timed operation against the numba backend at its timed
size. Nothing is timed unless all of that agrees. `--rehearse` runs the whole script at tiny sizes in Triton's
interpreter, on a machine without a GPU, and times nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported

import numpy as np
import torch
import triton

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import gpu_cases  # finds an uninstalled samelaw, so it comes first
from gpu_making import CASES, assert_same_bits

from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose
from samelaw.contract.schedule import NoiseClock, Schedule
from samelaw.contract.spec import Mode
from samelaw.fast.cpu import CpuKernels
from samelaw.fast.gpu import GpuKernels
from samelaw.fast.kernels import LookupCall, NoisePlan

SCHEMA = "samelaw.benchmark.gpu/1"
DIM = 64
BATCH = 2048
EXPONENT = -32
RATE = 0.03125
STREAM = NoiseStream(NoiseKey.from_seed(1), rounds=12)


@dataclass(frozen=True)
class Sizes:
    """What is measured: `normals` at once, tables of `rows`, batches of `batch`, runs of `steps`."""

    normals: int
    rows: tuple[int, ...]
    batch: int
    steps: int


@dataclass(frozen=True)
class Work:
    """One thing to time.

    Attributes:
        name: of the system.
        run: does it once.
        amount, unit: how much of what one run does; the rate is amount / seconds. None where only the time counts.
    """

    name: str
    run: Callable[[], object]
    amount: float | None = None
    unit: str = ""


# Bits.


def check_cases(device: torch.device) -> list[str]:
    """Names of the cases that fail on this device."""
    kernels = GpuKernels(device, lanes=256 if device.type == "cpu" else 128)
    failed = []
    for name, check in CASES.items():
        try:
            check(kernels)
        except Exception as cause:
            failed.append(f"{name}: {cause}")
    return failed


def check_normals(kernels: GpuKernels, numba: CpuKernels, count: int) -> None:
    """The timed draws, at each number of rounds, or 1e7 of them."""
    rows = torch.arange(min(count, 10_000_000) // DIM) * 977
    for rounds in (8, 12, 20):
        stream = NoiseStream(NoiseKey.from_seed(rounds), rounds)
        found = kernels.normals(stream, Purpose.REPLAY, 0, rows.to(kernels.device), 12345, DIM)
        assert_same_bits(found, numba.normals(stream, Purpose.REPLAY, 0, rows, 12345, DIM))


def check_step(kernels: GpuKernels, numba: CpuKernels, plan: NoisePlan, rows: int, batch: Batch) -> None:
    """One lazy step on both backends at the timed size: reads, norms, history and weights."""
    before = a_table(rows)
    results = []
    for backend in (kernels, numba):
        state = State(before.to(backend.device, copy=True), steady_history(rows, batch, plan).to(backend.device))
        there = batch.on(backend.device)
        results.append((*lazy_step(backend, state, there, plan), state.weights, state.history))
    for one, two in zip(*results, strict=True):
        assert_same_bits(one, two)


# What a step is.


@dataclass(frozen=True)
class Batch:
    call: LookupCall
    gradient: torch.Tensor

    def on(self, device: torch.device) -> Batch:
        call = self.call
        parts = (call.ids.to(device), call.offsets.to(device), call.example_of_bag.to(device))
        return Batch(LookupCall(*parts), self.gradient.to(device))


@dataclass
class State:
    weights: torch.Tensor
    history: torch.Tensor


def a_batch(rows: int, batch: int, pooling: int, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(0, rows, batch * pooling))
    call = LookupCall(ids, torch.arange(batch + 1) * pooling, torch.arange(batch))
    return Batch(call, torch.from_numpy(rng.standard_normal((batch, DIM)).astype(np.float32)))


def a_table(rows: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).standard_normal((rows, DIM), dtype=np.float32))


def a_plan(mode: Mode, steps: int) -> NoisePlan:
    clock = NoiseClock.of(
        Schedule.constant(0.05, steps=steps), noise_multiplier=1.0, clip_norm=1.0, expected_batch_size=float(BATCH)
    )
    return NoisePlan(mode, STREAM, clock, 0, DIM)


def steady_history(rows: int, batch: Batch, plan: NoisePlan) -> torch.Tensor:
    """Steps paid per row deep inside a run with uniform reads: delays are geometric with mean rows / reads."""
    delay = np.random.default_rng(3).geometric(min(1.0, batch.call.ids.shape[0] / rows), rows)
    return torch.from_numpy(np.maximum(0, plan.clock.steps - delay).astype(np.int32))


def lazy_step(
    kernels: GpuKernels | CpuKernels, state: State, batch: Batch, plan: NoisePlan
) -> tuple[torch.Tensor, torch.Tensor]:
    """Settle what is read, read, norms, clip, update. Returns the reads and the norms."""
    due, since = kernels.due_rows(state.history, batch.call.ids, plan.clock.steps)
    kernels.settle(state.weights, due, since, plan.clock.steps, plan)
    reads = kernels.pool(state.weights, batch.call)
    start = torch.zeros(batch.gradient.shape[0], dtype=torch.float64, device=kernels.device)
    norms = kernels.square_norms([batch.call], [batch.gradient], start)
    # Any factors do for the speed; these are exact on every device.
    factors = torch.full_like(norms, 0.5)
    kernels.update(state.weights, [batch.call], [batch.gradient], factors, EXPONENT, RATE)
    return reads, norms


# Time.


def seconds(work: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def measure(works: list[Work], repeats: int, *, timed: bool) -> dict[str, Any]:
    """Run each once to compile and warm up, then all of them in turn, `repeats` times."""
    taken: dict[str, list[float]] = {work.name: [] for work in works}
    for work in works:
        work.run()
    for _ in range(repeats if timed else 0):
        for work in works:
            taken[work.name].append(seconds(work.run))
    results: dict[str, Any] = {}
    for work in works:
        if not timed:
            results[work.name] = None
            continue
        low, median, high = (float(v) for v in np.quantile(taken[work.name], [0.1, 0.5, 0.9]))
        results[work.name] = {"p10": low, "median": median, "p90": high, "repeats": repeats}
        if work.amount is not None:
            results[work.name][work.unit] = work.amount / median
    return results


def normals_works(kernels: GpuKernels, count: int) -> list[Work]:
    rows = torch.arange(count // DIM, device=kernels.device) * 977
    buffer = torch.empty((count // DIM, DIM), device=kernels.device)
    works = [Work("torch.randn", lambda: torch.randn(buffer.shape, out=buffer), count, "normals_per_second")]
    for rounds in (8, 12, 20):
        stream = NoiseStream(NoiseKey.from_seed(rounds), rounds)

        def draw(stream: NoiseStream = stream) -> torch.Tensor:
            return kernels.normals(stream, Purpose.REPLAY, 0, rows, 12345, DIM)

        works.append(Work(f"chacha{rounds}", draw, count, "normals_per_second"))
    return works


def table_works(kernels: GpuKernels, rows: int, pooling: int, batch_size: int, steps: int) -> list[Work]:
    """A copy of the table (the floor), sparse SGD, eager twice, and a lazy step in each mode."""
    weights = a_table(rows).to(kernels.device)
    other = torch.empty_like(weights)
    batch = a_batch(rows, batch_size, pooling, seed=4).on(kernels.device)
    every = torch.arange(rows, device=kernels.device)
    before = torch.full_like(every, steps - 1)
    replay = a_plan(Mode.REPLAY, steps)
    moved = 2.0 * weights.numel() * 4
    spread = batch.call.ids.reshape(batch_size, pooling)

    def sgd() -> None:
        weights[spread].sum(1)
        gradient = batch.gradient.repeat_interleave(pooling, 0)
        weights.index_add_(0, batch.call.ids, gradient, alpha=-1e-6)

    def eager_torch() -> None:
        sgd()
        weights.add_(other.normal_(), alpha=1e-6)

    def eager_own() -> None:
        sgd()
        kernels.settle(weights, every, before, steps, replay)

    works = [
        Work("copy of the table", lambda: other.copy_(weights), moved, "bytes_per_second"),
        Work("sparse SGD, not private", sgd),
        Work("eager, torch normal_ and add_", eager_torch, moved, "bytes_per_second"),
        Work("eager, replay kernel on every row", eager_own, moved, "bytes_per_second"),
    ]
    for mode in Mode:
        plan = a_plan(mode, steps)
        steady = steady_history(rows, batch, plan).to(kernels.device)
        state = State(weights, steady.clone())

        def step(state: State = state, steady: torch.Tensor = steady, plan: NoisePlan = plan) -> None:
            state.history[batch.call.ids] = steady[batch.call.ids]  # every repeat finds the same debts
            lazy_step(kernels, state, batch, plan)

        works.append(Work(f"lazy, {mode}", step))
    return works


# The report.


def show(title: str, results: dict[str, Any]) -> None:
    print(f"\n{title}")
    for name, result in results.items():
        if result is None:
            print(f"  {name:<36} (rehearsed)")
            continue
        rate = next((f"{v:12.3e} {k}" for k, v in result.items() if k.endswith("_per_second")), "")
        low, median, high = (f"{result[key] * 1e3:.3f}" for key in ("p10", "median", "p90"))
        print(f"  {name:<36} {median:>10} ms  [{low}, {high}] {rate}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Bits first, then times, of the GPU backend.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1 << 20, 1 << 22])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--rehearse", action="store_true", help="tiny, in Triton's interpreter; times nothing")
    options = parser.parse_args()
    if options.rehearse:
        device, sizes = torch.device("cpu"), Sizes(normals=640, rows=(40,), batch=8, steps=20)
    elif torch.cuda.is_available():
        device = torch.device("cuda")
        sizes = Sizes(normals=1 << 26, rows=tuple(options.rows), batch=BATCH, steps=10_000)
    else:
        print("this benchmark needs a CUDA device (or --rehearse)", file=sys.stderr)
        return 2

    kernels, numba = GpuKernels(device), CpuKernels()
    try:
        if failed := check_cases(device):
            raise AssertionError("; ".join(failed))
        check_normals(kernels, numba, sizes.normals)
        for rows in sizes.rows:
            for pooling in (1, 20):
                for mode in Mode:
                    batch = a_batch(rows, sizes.batch, pooling, seed=5)
                    check_step(kernels, numba, a_plan(mode, sizes.steps), rows, batch)
    except AssertionError as cause:
        print(f"the bits differ, so nothing is timed: {cause}", file=sys.stderr)
        return 1
    print(f"bits: {len(CASES)} cases, {len(gpu_cases.MODULES)} groups, and every timed operation agree")

    timed = not options.rehearse
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "device": torch.cuda.get_device_name(device) if timed else "interpreter",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
        },
        "dim": DIM,
        "batch": sizes.batch,
        "normals": measure(normals_works(kernels, sizes.normals), options.repeats, timed=timed),
        "tables": [],
    }
    show(f"{sizes.normals:,} normals", report["normals"])
    for rows in sizes.rows:
        for pooling in (1, 20):
            works = table_works(kernels, rows, pooling, sizes.batch, sizes.steps)
            results = measure(works, options.repeats, timed=timed)
            report["tables"].append({"rows": rows, "pooling": pooling, "systems": results})
            show(f"{rows:,} rows x {DIM}, batch {sizes.batch}, pooling {pooling}", results)
    if timed:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(f"\nwritten to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
