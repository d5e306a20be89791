"""All noise that a row received over the run, read off a transcript without the key (check S4).

    received = initial weights - updates, which the recorded sums give - released weights

is the sum of what every step owed, whoever was read when: normal with the variance of the whole run's clock, for every
row alike and independent between rows. A trainer that forgets the rows which nobody reads, or pays popular rows more
often, changes it with the number of reads.

Rounding is met as in equivalence/spans.py: `payments` roundings of at most one spacing of the weights are added to the
known variance, a dither hides the lattice, and a row is left out unless its noise is at least 32 sqrt(payments)
spacings wide at the widest place that it can reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from samelaw.audit.findings import Finding, Verdict, finding, not_assessed, of_tests
from samelaw.audit.folder import RunFolder
from samelaw.contract.evidence import TestResult
from samelaw.contract.evidence import Verdict as TestVerdict
from samelaw.contract.spec import Mode, PrivacySpec
from samelaw.contract.transcript import RecordedStep
from samelaw.equivalence import laws

MARGIN = 0.01
RESOLUTION = 32
_REACH = 8.0
_WIDTHS = 8
_TESTS = 64  # shares of the error budget: no run plans more, and a fixed number tells nothing of the data


@dataclass(repr=False)
class _Rows:
    """Some rows of one table: what the updates took from them, and how often they were read."""

    rows: Int64[np.ndarray, "rows"]
    updates: Float64[np.ndarray, "rows dim"]
    path: Float64[np.ndarray, "rows dim"]
    reads: Int64[np.ndarray, "rows"]


class NoiseTotals:
    """Adds up the updates of the chosen rows, and tests what is left.

    Args:
        chosen: table -> rows, ascending.
    """

    def __init__(self, folder: RunFolder, spec: PrivacySpec, chosen: Mapping[str, np.ndarray]) -> None:
        self._folder, self._spec = folder, spec
        self._tables: dict[str, _Rows] = {}
        for name in folder.table_names():
            _, dim, padding = folder.opened["tables"][name]
            rows = chosen[name] if padding is None else chosen[name][chosen[name] != padding]
            zeros = np.zeros((rows.size, dim))
            self._tables[name] = _Rows(rows, zeros, zeros.copy(), np.zeros(rows.size, np.int64))
        shapes = folder.opened["dense"]
        self._dense = {name: np.zeros(math.prod(shape)) for name, shape in shapes.items()}
        self._dense_path = {name: np.zeros(math.prod(shape)) for name, shape in shapes.items()}
        self._steps = 0

    def step(self, record: RecordedStep) -> None:
        spec = self._spec
        rate = np.float32(spec.schedule.rate(record.step) / spec.expected_batch_size)
        for name, table in self._tables.items():
            if name not in record.rows:
                continue
            _, here, there = np.intersect1d(table.rows, record.rows[name], assume_unique=True, return_indices=True)
            taken = rate * np.ldexp(record.sums[name][there].astype(np.float32), spec.contribution_exponent)
            table.updates[here] += taken
            table.path[here] += np.abs(taken)
            table.reads[here] += 1
        for name, value in record.dense_sum.items():
            taken = rate * value
            self._dense[name] += taken
            self._dense_path[name] += np.abs(taken)
        self._steps = record.step + 1

    def finding(self) -> Finding:
        """S4."""
        initial, released, spec = self._folder.initial, self._folder.weights, self._spec
        assert initial is not None
        std = math.ldexp(math.sqrt(float(spec.clock.at(np.array([self._steps]))[0])), spec.clock.exponent)
        if std == 0:
            return not_assessed("S4", "The run owed no noise.")
        noise: dict[str, Float64[np.ndarray, "_rows _dim"]] = {}
        reads: list[np.ndarray] = []
        total = 0
        for number, (name, table) in enumerate(self._tables.items()):
            before, after = (f.take(f"{name}.weight", table.rows) for f in (initial, released))
            payments = table.reads + self._steps if spec.mode is Mode.REPLAY else 2 * table.reads + 1
            z, seen = _standardised(
                before, after, table.updates, table.path, payments[:, None], std, np.random.default_rng(number)
            )
            kept = seen.all(axis=1)
            total += z.size
            noise[name] = z[kept]
            reads.append(np.repeat(table.reads[kept], z.shape[1]))
        dense = [
            _standardised(
                initial.whole(name).ravel(), released.whole(name).ravel(), taken, self._dense_path[name],
                np.full(taken.size, 2 * self._steps), std, np.random.default_rng(1 << 20),
            )
            for name, taken in self._dense.items()
        ]  # fmt: skip
        return _judged(noise, np.concatenate([*reads, np.zeros(0, np.int64)]), [z[seen] for z, seen in dense], total)


def _standardised(
    before: np.ndarray, after: np.ndarray, updates: np.ndarray, path: np.ndarray, payments: np.ndarray, std: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Received noise over its std, dithered; and where it can be seen through the rounding."""
    start, end = before.astype(np.float64), after.astype(np.float64)
    widest = np.abs(start) + path + _REACH * std
    ulp = np.spacing(widest.astype(np.float32)).astype(np.float64)
    dither = rng.uniform(-0.5, 0.5, start.shape) * ulp
    z = (start - updates - end + dither) / np.sqrt(std**2 + (payments + 1) * ulp**2 / 12)
    return z, std >= RESOLUTION * np.sqrt(payments) * ulp


def _judged(
    noise: Mapping[str, np.ndarray], reads: Int64[np.ndarray, "samples"], dense: list[np.ndarray], total: int
) -> Finding:
    """The verdict on `total` values, of which those in `noise` can be seen."""
    everything = np.concatenate([*(z.ravel() for z in noise.values()), np.zeros(0)])
    parameters = np.concatenate([*dense, np.zeros(0)])
    rows = [np.concatenate(same) for same in _by_width(noise).values()]
    planned: list[tuple[Callable[..., TestResult], tuple[Any, ...], dict[str, Any]]] = [
        (laws.scale, (everything,), {"margin": MARGIN, "name": "scale, all rows"}),
        (laws.mean, (everything,), {"name": "mean, all rows"}),
        (laws.kolmogorov_smirnov, (everything,), {"name": "Kolmogorov-Smirnov, all rows"}),
        (laws.scale, (parameters,), {"margin": MARGIN, "name": "scale, dense parameters"}),
    ]
    for low, high in _octaves(reads):
        group = everything[(reads >= low) & (reads <= high)]
        planned.append((laws.scale, (group,), {"margin": MARGIN, "name": f"scale, rows read {low} to {high} times"}))
    for z in rows:
        planned.append((laws.duplicates, (z,), {"within": 1e-4, "name": f"repeated noise, width {z.shape[1]}"}))
        n, d = z.shape[0] // 2 * 2, z.shape[1] // 2 * 2  # disjoint pairs: overlapping ones would not be independent
        for name, first, second in (
            ("rows", z[0:n:2], z[1:n:2]),
            ("dimensions", z[:, 0:d:2], z[:, 1:d:2]),
        ):
            options = {"name": f"correlation, neighbouring {name}, width {z.shape[1]}"}
            planned.append((laws.correlation, (first.ravel(), second.ravel()), options))
    assert len(planned) <= _TESTS  # 4, at most 33 octaves of up to 2^31 reads, and 3 for each of 8 widths
    alarm = laws.share(laws.FALSE_ALARM, _TESTS)
    tests = tuple(test(*values, false_alarm=alarm, **options) for test, values, options in planned)
    private = {"values": total, "seen": int(everything.size)}
    verdict = of_tests(tests, all_of_one=tests[0].verdict is TestVerdict.EQUIVALENT)
    if verdict is Verdict.REFUTED:
        failed = ", ".join(t.name for t in tests[:4] if t.verdict is TestVerdict.REFUTED) or "scale by number of reads"
        said = f"The noise that rows received is not what the ledger charges for (first seen by: {failed})."
        return finding("S4", verdict, said, private=private, tests=tests)
    if verdict is Verdict.NOT_ASSESSED or everything.size < total / 2:
        why = "On most rows the noise is too narrow beside the weights' rounding to be seen."
        return not_assessed("S4", why, private=private, tests=tests)
    return finding(
        "S4",
        verdict,
        "Over the whole run rows received noise of the law that the ledger charges for, whether they were read or not.",
        detectable=f"a std wrong by {_detectable(total // 2):.2g} of itself over all rows" if total > 1 else "",
        private=private,
        tests=tests,
    )


def _detectable(samples: int) -> float:
    """The gap of `laws.scale`. Half of all values are counted as seen: how many were depends on the data."""
    low, high = laws.std_limits(samples, laws.FALSE_ALARM / _TESTS / 2)
    lower, upper = laws.std_limits(samples, laws.FALSE_PASS)
    return max(high / lower - 1, 1 - low / upper)


def _octaves(reads: np.ndarray) -> list[tuple[int, int]]:
    """0, 1, 2-3, 4-7, ... as far as there are reads."""
    found, low = [(0, 0)], 1
    while reads.size and low <= int(reads.max()):
        found.append((low, 2 * low - 1))
        low *= 2
    return found


def _by_width(noise: Mapping[str, np.ndarray]) -> dict[int, list[np.ndarray]]:
    """Tables of one width together; the widths with the most values, if there are many."""
    found: dict[int, list[np.ndarray]] = {}
    for z in noise.values():
        found.setdefault(z.shape[1], []).append(z)
    largest = sorted(found, key=lambda width: -sum(z.size for z in found[width]))[:_WIDTHS]
    return {width: found[width] for width in largest}
