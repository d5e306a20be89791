"""What does a private step cost beside a step without privacy, and beside noise on every row?

Expect: eager grows with the table; aggregate does not, and stays within a small factor of sparse SGD. Bridge costs
about two draws a level of its tree. Replay draws as many normals a step as eager, on average, in its steady state.
Floor: the cache misses of the touched rows, which sparse SGD pays too.
Compare: all systems on the same tables and the same law of reads, interleaved in one process; median and quartiles;
ratios are of medians. History starts in its steady state. The flush that a release needs is reported beside. Wall time
on all cores is what a user waits for; on a machine that others use, `--clock cpu` (one thread, CPU time) is the fair
one.

    python benchmarks/step_time.py [--clock wall|cpu] [--rounds N] [--part step|model|memory] [--out FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

# Huge pages for what torch allocates: random rows then cost no page walk. It helps every system that is compared.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import numba
import numpy as np
import torch
from baselines import EagerNoise, SparseSGD, steady_history
from torch import Tensor, nn

from samelaw.contract.noise import NoiseKey, NoiseStream
from samelaw.contract.schedule import NoiseClock, Schedule
from samelaw.contract.spec import CLIP_MARGIN, Mode, PrivacySpec
from samelaw.contract.trace import Batch
from samelaw.fast.cpu import CpuKernels
from samelaw.fast.dlrm import DLRM, bce_loss
from samelaw.fast.kernels import LookupCall, NoisePlan
from samelaw.fast.tables import LazyTable
from samelaw.fast.trainer import LazyTrainer
from samelaw.workloads.synthetic import MLPERF_ROWS, ReadLaw, make_synthetic

SCHEMA = "samelaw.benchmark.step_time/1"
DIM, BATCH = 64, 2048
NOW, STEPS = 10_000, 1 << 20  # the steady state is that of step 10,000 of a run of 2^20
ZIPF = 1.05
EXAMPLES = 1_000_000  # training set that the whole model's private step samples from
BOTTOM, TOP = (512, 256, DIM), (1024, 1024, 512, 256, 1)  # MLPerf's layers, 64 columns
TARGETS = {"eager": 300.0, "sgd": 3.0, "model": 1.5, "memory": 1.10}


@dataclass(frozen=True)
class Case:
    rows: int
    pooling: int
    reads: str


CASES = [
    Case(rows, pooling, reads) for rows in (1 << 20, 1 << 22) for pooling in (1, 20) for reads in ("uniform", "zipf")
]


class Clock:
    """What `timed` reads."""

    read: Callable[[], float] = staticmethod(time.perf_counter)


class Reads:
    """Batches of ids of one law, new ones at every call, over rows in an order that scatters the popular ones."""

    def __init__(self, case: Case, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.case = case
        weight = np.ones(case.rows) if case.reads == "uniform" else np.arange(1.0, case.rows + 1) ** -ZIPF
        self.order = self.generator.permutation(case.rows)
        self.upper = np.cumsum(weight / weight.sum())
        share = np.empty(case.rows)
        share[self.order] = weight / weight.sum()
        # A row is missed by a batch if all of its ids miss it.
        self.read_probability = np.maximum(-np.expm1(BATCH * case.pooling * np.log1p(-share)), 1e-12)
        self.offsets = torch.arange(0, BATCH * case.pooling + 1, case.pooling)
        self.examples = torch.arange(BATCH)

    def call(self) -> LookupCall:
        ranks = np.searchsorted(self.upper, self.generator.random(BATCH * self.case.pooling))
        ids = self.order[np.minimum(ranks, self.case.rows - 1)]
        return LookupCall(torch.from_numpy(ids), self.offsets, self.examples)


def clip_factors(norms: Tensor) -> Tensor:
    """As the trainer's, for C = 1."""
    squares = norms.numpy()
    usable = np.isfinite(squares) & (squares >= 0)
    target = 1 - CLIP_MARGIN
    found = np.sqrt(np.where(usable, squares, 0.0))
    return torch.from_numpy(np.where(usable, np.where(found <= target, 1.0, target / np.maximum(found, target)), 0.0))


class PrivateStep:
    """Read, clip and update one table, as the lazy trainer does; eager reads without settling first."""

    def __init__(self, weights: Tensor, plan: NoisePlan, history: np.ndarray) -> None:
        self.kernels = CpuKernels()
        self.table = LazyTable(
            "t", 0, weights, padding_idx=None, plan=plan, kernels=self.kernels, steps=STEPS, exponent=-32
        )
        self.table.history = torch.from_numpy(history)
        self.rate, self.now = float(np.float32(0.1 / BATCH)), NOW

    def lazy(self, call: LookupCall, gradient: Tensor) -> None:
        self.table.read(call, self.now)
        self._clip_and_update(call, gradient)
        self.now += 1

    def eager(self, call: LookupCall, gradient: Tensor, noise: Callable[[int], None]) -> None:
        self.kernels.pool(self.table.weights, call)
        self._clip_and_update(call, gradient)
        noise(self.now)
        self.now += 1

    def flush_seconds(self, rows: int) -> float:
        """Time to settle the whole table, from `rows` neighbouring rows: popular and rare ones lie mixed."""
        chosen = torch.arange(self.table.rows - rows, self.table.rows)
        return timed(lambda: self.table.settle_rows(chosen, self.now)) * self.table.rows / rows

    def _clip_and_update(self, call: LookupCall, gradient: Tensor) -> None:
        start = torch.zeros(BATCH, dtype=torch.float64)
        factors = clip_factors(self.kernels.square_norms([call], [gradient], start))
        self.table.update([call], [gradient], factors, self.rate)


def measure_case(case: Case, rounds: int) -> dict[str, Any]:
    """Every system on one table. The slow ones run in every twelfth round."""
    reads = Reads(case, seed=case.rows + case.pooling)
    generator = np.random.default_rng(1)
    weights = torch.empty(case.rows, DIM).uniform_(-0.01, 0.01)
    gradient = torch.from_numpy(generator.standard_normal((BATCH, DIM)).astype(np.float32)) * 0.02
    stream = NoiseStream(NoiseKey.from_seed(1))
    clock = NoiseClock.of(
        Schedule.constant(0.1, steps=STEPS), noise_multiplier=1.0, clip_norm=1.0, expected_batch_size=BATCH
    )
    history = steady_history(reads.read_probability, NOW, generator)
    plans = {mode: NoisePlan(mode, stream, clock, 0, DIM) for mode in Mode}
    lazy = {mode: PrivateStep(weights, plan, history.copy()) for mode, plan in plans.items()}
    eager = PrivateStep(weights, plans[Mode.REPLAY], history.copy())
    noise, sgd = EagerNoise(weights, stream, float(clock.scales[0])), SparseSGD(weights, 0.1 / BATCH)

    fast: dict[str, Callable[[LookupCall], None]] = {
        "sgd (torch)": lambda call: sgd.torch_step(call, gradient),
        "sgd (numba)": lambda call: sgd.numba_step(call, gradient),
        "aggregate": lambda call: lazy[Mode.AGGREGATE].lazy(call, gradient),
        "bridge": lambda call: lazy[Mode.BRIDGE].lazy(call, gradient),
    }
    slow: dict[str, Callable[[LookupCall], None]] = {
        "replay": lambda call: lazy[Mode.REPLAY].lazy(call, gradient),
        "eager (numba)": lambda call: eager.eager(call, gradient, noise.numba_noise),
        "eager (torch)": lambda call: eager.eager(call, gradient, noise.torch_noise),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*fast, *slow)}
    for number in range(-3, rounds):  # three rounds to warm up
        systems = {**fast, **(slow if number % 12 == 0 else {})}
        calls = [reads.call() for _ in systems]
        for (name, step), call in zip(systems.items(), calls, strict=True):
            taken = timed(lambda step=step, call=call: step(call))
            if number >= 0:
                seconds[name].append(taken)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    eager_step = middle["eager (numba)"]
    flush = {
        str(mode): step.flush_seconds(4096 if mode is Mode.REPLAY else 1 << 17) / eager_step
        for mode, step in lazy.items()
    }
    return {
        **asdict(case),
        "systems": {name: spread(values) for name, values in seconds.items()},
        "times_sgd": {name: value / middle["sgd (torch)"] for name, value in middle.items()},
        "eager_over": {name: eager_step / value for name, value in middle.items()},
        "flush_in_eager_steps": flush,
    }


def measure_model(rounds: int) -> dict[str, Any]:
    """A whole DLRM step: 26 tables of MLPerf's proportions, 4M rows together, one id a feature."""
    workload = make_synthetic(
        ReadLaw.UNIFORM, scale=(1 << 22) / sum(MLPERF_ROWS), train=1 << 17, test=1, most_ids={}, seed=1
    )
    rows = sum(feature.rows for feature in workload.features)

    def model(*, sparse: bool) -> DLRM:
        torch.manual_seed(1)
        return DLRM(workload.features, workload.dense_width, dim=DIM, bottom=BOTTOM, top=TOP, sparse=sparse)

    plain = model(sparse=True)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)

    def sgd(batch: Batch) -> None:
        losses, _ = bce_loss(plain, batch)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    systems: dict[str, Callable[[Batch], object]] = {"sgd (torch)": sgd}
    for mode in (Mode.AGGREGATE, Mode.BRIDGE):
        trainer = LazyTrainer(
            model(sparse=False), private_spec(mode), NoiseKey.from_seed(1), examples=EXAMPLES, loss_fn=bce_loss
        )
        put_in_steady_state(trainer)
        systems[str(mode)] = trainer.train_batch
    generator = np.random.default_rng(3)
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(-3, rounds):
        for name, step in systems.items():
            batch = workload.train.batch(np.sort(generator.choice(len(workload.train), BATCH, replace=False)))
            taken = timed(lambda step=step, batch=batch: step(batch))
            if number >= 0:
                seconds[name].append(taken)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "tables": len(workload.features),
        "rows": rows,
        "batch": BATCH,
        "dense_parameters": sum(p.numel() for layers in (plain.bottom, plain.top) for p in layers.parameters()),
        "examples_sampled_from": EXAMPLES,
        "systems": {name: spread(values) for name, values in seconds.items()},
        "times_sgd": {name: value / middle["sgd (torch)"] for name, value in middle.items()},
    }


def private_spec(mode: Mode) -> PrivacySpec:
    return PrivacySpec(
        clip_norm=1.0, noise_multiplier=1.0, sampling_rate=BATCH / EXAMPLES, expected_batch_size=BATCH, delta=1e-6,
        schedule=Schedule.constant(0.1, steps=STEPS), mode=mode,
    )  # fmt: skip


def put_in_steady_state(trainer: LazyTrainer) -> None:
    """As after `NOW` steps of uniform reads."""
    generator = np.random.default_rng(2)
    trainer.step_index = NOW
    for table in trainer.tables.values():
        chance = np.full(table.rows, -np.expm1(BATCH * np.log1p(-1 / table.rows)) if table.rows > 1 else 1.0)
        table.history[:] = torch.from_numpy(steady_history(chance, NOW, generator))


class OneTable(nn.Module):
    """A table and a logit: what lazy training needs beyond the table itself shows in its memory alone."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(rows, DIM, mode="sum", include_last_offset=True)
        self.logit = nn.Linear(DIM, 1)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.logit(self.table(ids, offsets)).squeeze(1)


def probe_memory(rows: int) -> dict[str, Any]:
    """Peak memory of training and releasing one table, over what the process held before the model was made."""
    spec = private_spec(Mode.AGGREGATE)

    def run(size: int, steps: int) -> None:
        trainer = LazyTrainer(OneTable(size), spec, NoiseKey.from_seed(1), examples=EXAMPLES)
        offsets = torch.arange(0, 20 * BATCH + 1, 20)
        for _ in range(steps):
            logits = trainer.model(torch.randint(0, size, (20 * BATCH,)), offsets)
            trainer.step(nn.functional.softplus(logits))
        trainer.release()

    run(10_000, 3)  # libraries loaded, kernels compiled
    gc.collect()
    before = status_bytes("VmRSS")
    reset_peak()
    run(rows, 10)
    table = rows * DIM * 4
    return {"rows": rows, "table_bytes": table, "peak_bytes": status_bytes("VmHWM") - before,
            "peak_over_tables": (status_bytes("VmHWM") - before) / table}  # fmt: skip


def status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def reset_peak() -> None:
    """Make VmHWM start again from the present size (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def measure_memory() -> dict[str, Any]:
    """In a process of its own, where nothing else has raised the peak."""
    done = subprocess.run(
        [sys.executable, __file__, "--part", "memory-probe"], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def timed(work: Callable[[], object]) -> float:
    start = Clock.read()
    work()
    return Clock.read() - start


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"q25": float(low), "median": float(middle), "q75": float(high), "repeats": len(values)}


def machine(threads: int) -> dict[str, Any]:
    names = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in names.splitlines() if "model name" in line), "unknown")
    return {
        "processor": model,
        "avx512": "avx512f" in names,
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": os.getloadavg()[0],
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "0") == "1",
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("samelaw", "torch", "numba", "llvmlite", "numpy")},
    }


def report(record: dict[str, Any]) -> Iterator[str]:
    """A short table: every system as a multiple of sparse SGD, and eager as a multiple of every system."""
    for case in record.get("cases", []):
        yield f"{case['rows'] >> 20}M rows, pooling {case['pooling']}, {case['reads']}"
        yield f"  {'':14} {'x sparse SGD':>13} {'(quartiles)':>16} {'eager is':>10}  flush, in eager steps"
        base = case["systems"]["sgd (torch)"]["median"]
        for name, values in case["systems"].items():
            quartiles = f"({values['q25'] / base:.2f}..{values['q75'] / base:.2f})"
            flush = case["flush_in_eager_steps"].get(name)
            yield (
                f"  {name:14} {case['times_sgd'][name]:13.2f} {quartiles:>16} {case['eager_over'][name]:9.1f}x"
                + (f"  {flush:.1f}" if flush is not None else "")
            )
    if "model" in record:
        model = record["model"]
        yield f"whole DLRM step, {model['tables']} tables, {model['rows'] / 2**20:.1f}M rows, batch {model['batch']}"
        base = model["systems"]["sgd (torch)"]["median"]
        for name, values in model["systems"].items():
            quartiles = f"({values['q25'] / base:.2f}..{values['q75'] / base:.2f})"
            yield f"  {name:14} {model['times_sgd'][name]:13.2f} {quartiles:>16}"
    if "memory" in record:
        yield f"peak memory over the table's: {record['memory']['peak_over_tables']:.3f}"
    for name, (found, target, reached) in judged(record).items():
        yield f"target {name}: {found:.2f} against {target:g}: {'reached' if reached else 'MISSED'}"


def judged(record: dict[str, Any]) -> dict[str, tuple[float, float, bool]]:
    """The goals of docs/performance.md, where they were measured."""
    found: dict[str, tuple[float, float, bool]] = {}
    for case in record.get("cases", []):
        if case["rows"] == 1 << 22 and case["pooling"] == 1:
            ratio, cost = case["eager_over"]["aggregate"], case["times_sgd"]["aggregate"]
            where = f"4M rows, pooling 1, {case['reads']}"
            found[f"best eager over aggregate ({where})"] = ratio, TARGETS["eager"], ratio >= TARGETS["eager"]
            found[f"aggregate over sparse SGD ({where})"] = cost, TARGETS["sgd"], cost <= TARGETS["sgd"]
    if "model" in record:
        cost = record["model"]["times_sgd"]["aggregate"]
        found["whole model, aggregate over SGD"] = cost, TARGETS["model"], cost <= TARGETS["model"]
    if "memory" in record:
        peak = record["memory"]["peak_over_tables"]
        found["peak memory over tables"] = peak, TARGETS["memory"], peak <= TARGETS["memory"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: one thread, its CPU time")
    parser.add_argument("--rounds", type=int, default=48, help="interleaved rounds per case (default 48)")
    parser.add_argument("--part", choices=("all", "step", "model", "memory", "memory-probe"), default="all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step_time.json")
    options = parser.parse_args()
    threads = numba.get_num_threads() if options.clock == "wall" else 1
    if options.clock == "cpu":
        Clock.read = staticmethod(time.process_time)
    numba.set_num_threads(threads)
    torch.set_num_threads(threads)
    if options.part == "memory-probe":
        print(json.dumps(probe_memory(1 << 22)))
        return 0
    record: dict[str, Any] = {"schema": SCHEMA, "clock": options.clock, "machine": machine(threads)}
    if options.part in ("all", "step"):
        record["cases"] = []
        for case in CASES:
            record["cases"].append(measure_case(case, options.rounds))
            print("\n".join(report({"cases": record["cases"][-1:]})), flush=True)
    if options.part in ("all", "model"):
        record["model"] = measure_model(options.rounds)
    if options.part in ("all", "memory"):
        record["memory"] = measure_memory()
    print("\n".join(line for line in report({**record, "cases": []})))
    for name, (found, target, reached) in judged(record).items():
        record.setdefault("targets", {})[name] = {"found": found, "target": target, "reached": reached}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
