"""How many standard normals does one core draw per nanosecond, and how does that compare with torch.randn?

Expect: at least 0.4 normals per ns-core with 12 rounds on AVX-512, faster than torch.randn although the generator is
cryptographic and every number can be addressed. Rounds cost in proportion to their number; the transform and the stores
cost the same beside any.
Compare: the CPU backend and torch.randn, one thread each, as many normals, interleaved in one process; CPU time,
not wall time, so that a busy machine says the same; report the median ratio.

    python benchmarks/noise.py [--repeats N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import torch

from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose
from samelaw.equivalence.noise_vectors import check_backend
from samelaw.fast.cpu import CpuKernels

SCHEMA = "samelaw.benchmark.noise/1"
TARGET = 0.4  # normals per ns-core, 12 rounds, dim 64, on a machine with AVX-512
NORMALS = 1 << 20


@dataclass(frozen=True)
class Case:
    rounds: int
    dim: int


CASES = [
    Case(rounds=12, dim=64),
    Case(rounds=8, dim=64),
    Case(rounds=20, dim=64),
    Case(rounds=12, dim=16),
    Case(rounds=12, dim=128),
    Case(rounds=12, dim=100),
]


def seconds(work: Callable[[], object]) -> float:
    """CPU time of one call in this process."""
    start = time.process_time_ns()
    work()
    return (time.process_time_ns() - start) / 1e9


def spread(values: list[float]) -> dict[str, float]:
    ordered = np.quantile(values, [0.1, 0.5, 0.9])
    return {"p10": float(ordered[0]), "median": float(ordered[1]), "p90": float(ordered[2])}


def measure(case: Case, kernels: CpuKernels, repeats: int) -> dict[str, Any]:
    """Interleave both generators; normals per ns-core of each, and their ratio pair by pair."""
    n = NORMALS // case.dim
    rows = torch.arange(n, dtype=torch.int64) * 977  # rows of a table, spread out
    steps = torch.full((n,), 12345, dtype=torch.int64)
    stream = NoiseStream(NoiseKey.from_seed(1), case.rounds)
    buffer = torch.empty(n, case.dim)
    generator = torch.Generator().manual_seed(1)

    def ours() -> torch.Tensor:
        return kernels.normals(stream, Purpose.REPLAY, 0, rows, steps, case.dim)

    def theirs() -> torch.Tensor:
        return buffer.normal_(generator=generator)

    for _ in range(3):
        ours()
        theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    drawn = n * case.dim
    return {
        **asdict(case),
        "normals": drawn,
        "repeats": repeats,
        "samelaw_per_ns_core": spread([drawn / a / 1e9 for a, _ in pairs]),
        "torch_randn_per_ns_core": spread([drawn / b / 1e9 for _, b in pairs]),
        "ratio_to_torch_randn": spread([b / a for a, b in pairs]),
    }


def machine() -> dict[str, Any]:
    flags: set[str] = set()
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                flags = set(value.split())
            elif name.strip() == "model name":
                model = value.strip()
    return {
        "processor": model,
        "avx512": {"avx512f", "avx512dq", "avx512vl"} <= flags,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("samelaw", "torch", "numba", "llvmlite", "numpy")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60, help="interleaved pairs per case (default 60)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "noise.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kernels = CpuKernels(threads=1)

    def normals(
        stream: NoiseStream, purpose: Purpose, table: int, rows: np.ndarray, steps: np.ndarray, dim: int
    ) -> np.ndarray:
        return kernels.normals(stream, purpose, table, torch.from_numpy(rows), torch.from_numpy(steps), dim).numpy()

    wrong = check_backend(normals)
    if wrong:
        print(f"no speed is quoted for wrong numbers: {wrong[0]}", file=sys.stderr)
        return 1
    here = machine()
    print(f"{here['processor']}, AVX-512 {'yes' if here['avx512'] else 'no'}; one core; median (10 % .. 90 %)")
    print(f"{'rounds':>6} {'dim':>4}  {'samelaw, normals/ns-core':>26}  {'torch.randn':>22}  {'ratio':>18}")
    results: list[dict[str, Any]] = []
    for case in CASES:
        result = measure(case, kernels, options.repeats)
        results.append(result)
        cells = [
            "{median:.3f} ({p10:.3f} .. {p90:.3f})".format(**result[name])
            for name in ("samelaw_per_ns_core", "torch_randn_per_ns_core", "ratio_to_torch_randn")
        ]
        print(f"{case.rounds:>6} {case.dim:>4}  {cells[0]:>26}  {cells[1]:>22}  {cells[2]:>18}")
    reached = results[0]["samelaw_per_ns_core"]["median"]
    if here["avx512"]:
        print(
            f"target {TARGET} normals per ns-core (12 rounds, dim 64): {'reached' if reached >= TARGET else 'MISSED'}"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"schema": SCHEMA, "target_per_ns_core": TARGET, "machine": here, "cases": results}
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}; geometric mean of the ratios {geometric_mean(results):.2f}")
    return 0


def geometric_mean(results: list[dict[str, Any]]) -> float:
    return statistics.geometric_mean(r["ratio_to_torch_randn"]["median"] for r in results)


if __name__ == "__main__":
    sys.exit(main())
