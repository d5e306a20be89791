"""Planted gaps through the tests of law, and what was seen of them."""

from __future__ import annotations

import argparse
import json
import math
import secrets
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import special, stats
from tqdm import tqdm

from samelaw.cli.calibrate_run import write_section_exists
from samelaw.cli.data import check_positive
from samelaw.cli.marked import write_section
from samelaw.cli.small_runs import SmallRuns
from samelaw.contract.evidence import TestResult
from samelaw.contract.noise import NoiseKey
from samelaw.contract.spec import Mode
from samelaw.equivalence import laws, power
from samelaw.equivalence.budget import Budget, holm
from samelaw.equivalence.calibration import CONFIDENCE
from samelaw.equivalence.laws import Measured, check_rate
from samelaw.equivalence.noise_law import MARGIN
from samelaw.equivalence.noise_tests import measure_noise
from samelaw.equivalence.planting import gaps
from samelaw.equivalence.power import Detection, Power
from samelaw.equivalence.received import Received

# A real run of this size has about 2e5 touched values, as many as verify has of a small workload.
ROWS, DIM, STEPS, EXAMPLES, SAMPLING_RATE = 3000, 32, 12, 4000, 0.1
SIZE = 4000
RATES = ((1e-3, 0.05), (laws.FALSE_ALARM, laws.FALSE_PASS))
_DIRECTION = np.linspace(0.1, 3.0, SIZE)

Planted = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def _more_in_the_tail(z: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """P(|z| > 2) grows by the factor, by mass from the body."""
    rate = 2 * float(stats.norm.sf(2.0))
    extra = rng.random(z.size) < rate * (factor - 1) / (1 - rate)
    return np.where(extra & (np.abs(z) <= 2), 2.5, z)


def _cut_tails(z: np.ndarray, cut: float, rng: np.random.Generator) -> np.ndarray:
    low = special.ndtr(-cut)
    return special.ndtri(low + (1 - 2 * low) * special.ndtr(z))


def _correlated(z: np.ndarray, r: float, rng: np.random.Generator) -> np.ndarray:
    half = z.size // 2
    return np.concatenate([z[:half], r * z[:half] + math.sqrt(1 - r * r) * z[half:]])


def _one_sided(z: np.ndarray, distance: float, rng: np.random.Generator) -> np.ndarray:
    """A mixture whose distribution function is `distance` away at 0."""
    return np.where(rng.random(z.size) < 2 * distance, np.abs(z), z)


# test -> how it measures n values, and a gap of a given size in them. Both directions of a scale are planted.
ALONE: dict[str, tuple[Callable[[np.ndarray], Measured], Planted]] = {
    "scale, std too small": (lambda z: laws.measure_scale(z, margin=MARGIN), lambda z, gap, rng: (1 - gap) * z),
    "scale, std too large": (lambda z: laws.measure_scale(z, margin=MARGIN), lambda z, gap, rng: (1 + gap) * z),
    "mean": (laws.measure_mean, lambda z, gap, rng: z + gap),
    "Kolmogorov-Smirnov": (laws.measure_kolmogorov_smirnov, _one_sided),
    "Anderson-Darling, std too small": (laws.measure_anderson_darling, lambda z, gap, rng: (1 - gap) * z),
    "Anderson-Darling, std too large": (laws.measure_anderson_darling, lambda z, gap, rng: (1 + gap) * z),
    "share beyond 2 std": (lambda z: laws.measure_tail_count(z, 2.0), _more_in_the_tail),
    "largest": (laws.measure_largest, _cut_tails),
    "correlation": (lambda z: laws.measure_correlation(z[: z.size // 2], z[z.size // 2 :]), _correlated),
    "projection": (
        lambda z: laws.measure_projection(z, _DIRECTION[: z.size]),
        lambda z, gap, rng: z + gap * _DIRECTION[: z.size],
    ),
}


def run_power(options: argparse.Namespace) -> int:
    check_positive("--runs", options.runs, least=1)
    check_positive("--synthetic", options.synthetic, least=1)
    check_positive("--seed", options.seed, least=0)
    check_rate("--alpha", options.alpha, "samelaw power")
    check_rate("--false-alarm", options.false_alarm, "samelaw power")
    if options.write is not None:
        write_section_exists(options.write)
    seed = secrets.randbits(48) if options.seed is None else options.seed
    rows = of_tests(options.synthetic, seed=seed, quiet=options.quiet)
    rows += of_suite(options.runs, Budget(options.false_alarm), seed=seed, quiet=options.quiet)
    facts = {"runs": options.runs, "synthetic": options.synthetic, "seed": seed, "false_alarm": options.false_alarm}
    found = power.judge(rows, alpha=options.alpha, facts=facts)
    if options.write is not None:
        write_section(options.write, "power", page(found))
    print(json.dumps(found.to_json(), indent=2) if options.json else words(found))
    return 0 if found.holds else 1


def of_tests(draws: int, *, seed: int, quiet: bool) -> list[Detection]:
    """Each test alone, on normals with exactly the gap that it claims to detect."""
    rng = np.random.default_rng([seed, 2])
    rows: list[Detection] = []
    with tqdm(total=draws * len(ALONE) * len(RATES), desc="normals", disable=quiet, file=sys.stderr) as bar:
        for false_alarm, false_pass in RATES:
            for name, (measure, plant) in ALONE.items():
                claimed = measure(rng.standard_normal(SIZE)).at(false_alarm, false_pass)
                gap = claimed.detectable
                if gap is None:
                    continue
                planted = (measure(plant(rng.standard_normal(SIZE), gap, rng)) for _ in range(draws))
                rows.append(
                    power.detection(
                        f"{name}: {gap:.4g} ({claimed.gap})",
                        f"Each test alone, false alarm {false_alarm:g}, its claimed gap planted in exact normals",
                        name.partition(",")[0],
                        [name if (found.p_value or 0.0) <= false_alarm else None for found in planted],
                        samples=SIZE,
                        size=gap,
                        detectable=gap,
                        promised=claimed.power,
                    )
                )
                bar.update(draws)
    return rows


def of_suite(runs: int, budget: Budget, *, seed: int, quiet: bool) -> list[Detection]:
    """The whole suite at its working rates, on real runs with each gap of the catalogue."""
    catalogue = gaps(DIM)
    firsts: dict[str, list[str | None]] = {gap.name: [] for gap in catalogue}
    claimed: dict[str, TestResult] = {}
    promised: dict[str, bool] = {gap.name: True for gap in catalogue}
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=runs * len(catalogue), desc="real runs", disable=quiet, file=sys.stderr) as bar,
    ):
        real = SmallRuns(Path(folder), rows=ROWS, dim=DIM, steps=STEPS, examples=EXAMPLES, sampling_rate=SAMPLING_RATE)
        for i in range(runs):
            one = (seed << 32) + i
            received = real.received(Mode.AGGREGATE, NoiseKey.from_seed(one), seed=one)
            for number, gap in enumerate(catalogue):
                tests = _measured(gap.plant(received, seed=(one << 8) + number), real)
                each = budget.share(len(tests))
                leading = next(test for test in tests if test.name == gap.test).at(each, laws.FALSE_PASS)
                claimed.setdefault(gap.name, leading)
                promised[gap.name] &= gap.promised(leading.detectable)
                firsts[gap.name].append(first_refused(tests, budget))
                bar.update()
    return [
        power.detection(
            gap.name,
            f"The whole suite, false alarm {budget.false_alarm:g} in all, on real runs",
            gap.test,
            firsts[gap.name],
            samples=claimed[gap.name].samples,
            size=gap.size,
            detectable=claimed[gap.name].detectable,
            promised=claimed[gap.name].power if promised[gap.name] else None,
        )
        for gap in catalogue
    ]


def _measured(received: Received, real: SmallRuns) -> list[Measured]:
    tests = measure_noise(received, real.spec(Mode.AGGREGATE), margin=MARGIN, restarts=(real.restart,))
    return [test for test in tests if test.p_value is not None]


def first_refused(tests: Sequence[Measured], budget: Budget) -> str | None:
    """The test with the smallest p-value, if Holm refuses it."""
    p_values = np.array([test.p_value for test in tests], dtype=np.float64)
    least = int(p_values.argmin())
    return tests[least].name if holm(p_values)[least] <= budget.false_alarm else None


def words(found: Power) -> str:
    """The table for the terminal, and the verdict."""
    lines = [f"{'planted':<64} {'detected':>12}  rate, 99 %       promised  seen first by"]
    for row in found.rows:
        promised = "none" if row.promised is None else f"{row.promised:.6g}"
        rate = f"{row.low:.3f}..{row.high:.3f}"
        lines.append(f"{row.name:<64} {row.detected:>5} of {row.runs:<5} {rate:<14}  {promised:>9}  {row.first}")
    lines += [f"BELOW ITS PROMISE: {name}" for name in found.refuted]
    promises = sum(row.promised is not None for row in found.rows)
    lines.append(
        f"None of {promises} promises is refuted, at an error budget of {found.alpha:g}."
        if found.holds
        else f"{len(found.refuted)} promises are not met, at an error budget of {found.alpha:g}."
    )
    return "\n".join(lines)


def page(found: Power) -> str:
    """The section of docs/power.md."""
    facts = found.facts
    verdict = "no promise is refuted" if found.holds else "refuted: " + "; ".join(found.refuted)
    return (
        f"Made by `samelaw power --runs {facts['runs']} --synthetic {facts['synthetic']} --seed {facts['seed']}`: "
        f"{facts['synthetic']:,} samples of {SIZE:,}\nvalues for each test alone, and {facts['runs']} real runs of the "
        f"lazy trainer (two tables of {ROWS:,} rows and {DIM} columns, {STEPS} steps), each with every gap. "
        f"The rate is a {CONFIDENCE:.0%} Clopper–Pearson interval. At an error budget of {found.alpha:g} for all "
        f"of it: {verdict}.\n\n{power.table(found)}"
    )
