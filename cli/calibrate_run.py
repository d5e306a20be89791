"""Many correct runs through every test of law, and what their p-values say of the tests."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from samelaw.cli.data import check_positive
from samelaw.cli.marked import write_section
from samelaw.cli.small_runs import SmallRuns
from samelaw.contract.errors import InputError
from samelaw.contract.noise import NoiseKey
from samelaw.contract.spec import Mode
from samelaw.equivalence import calibration, laws
from samelaw.equivalence.budget import holm
from samelaw.equivalence.calibration import Calibration, Row
from samelaw.equivalence.evalues import CorrelationEProcess, MeanEProcess, ScaleEProcess, Together
from samelaw.equivalence.laws import Measured, check_rate
from samelaw.equivalence.noise_law import MARGIN
from samelaw.equivalence.noise_tests import measure_noise
from samelaw.equivalence.received import Received, flat

STREAM = 20  # runs that one e-process watches
SIZES = (128, 2000)
_DIRECTION = np.linspace(0.1, 3.0, max(SIZES))

# Every test on n exact normals: the statistic's own law, with no trainer in between.
SYNTHETIC: dict[str, Callable[[np.ndarray], Measured]] = {
    "scale": lambda z: laws.measure_scale(z, margin=MARGIN),
    "mean": laws.measure_mean,
    "Kolmogorov-Smirnov": laws.measure_kolmogorov_smirnov,
    "Anderson-Darling": laws.measure_anderson_darling,
    "share beyond 2 std": lambda z: laws.measure_tail_count(z, 2.0),
    "share beyond 3 std": lambda z: laws.measure_tail_count(z, 3.0),
    "largest": laws.measure_largest,
    "correlation": lambda z: laws.measure_correlation(z[: z.size // 2], z[z.size // 2 :]),
    "projection": lambda z: laws.measure_projection(z, _DIRECTION[: z.size]),
}


def run_calibrate(options: argparse.Namespace) -> int:
    check_positive("--runs", options.runs, least=1)
    check_positive("--synthetic", options.synthetic, least=1)
    check_positive("--seed", options.seed, least=0)
    check_rate("--alpha", options.alpha, "samelaw calibrate")
    rates = parse_rates(options.rates)
    modes = list(Mode) if options.mode == "all" else [Mode(options.mode)]
    seed = secrets.randbits(48) if options.seed is None else options.seed
    if options.write is not None:
        write_section_exists(options.write)
    real = of_runs(options.runs, modes, rates, seed=seed, quiet=options.quiet)
    exact = of_normals(options.synthetic, rates, seed=seed, quiet=options.quiet)
    facts = {"runs": options.runs, "modes": [str(m) for m in modes], "synthetic": options.synthetic, "seed": seed}
    found = calibration.judge([*real, *exact], alpha=options.alpha, facts=facts)
    if options.write is not None:
        write_section(options.write, "calibration", page(found))
    print(json.dumps(found.to_json(), indent=2) if options.json else words(found))
    return 0 if found.holds else 1


def of_runs(runs: int, modes: Sequence[Mode], rates: Sequence[float], *, seed: int, quiet: bool) -> list[Row]:
    """Every test, the suite after Holm, and e-processes over many runs, on true runs of the lazy trainer."""
    by_test: dict[str, list[float]] = defaultdict(list)
    suite: dict[str, list[float]] = defaultdict(list)
    streams: dict[str, list[float]] = defaultdict(list)
    watch: dict[str, Watch] = {}
    with tempfile.TemporaryDirectory() as folder:
        small = SmallRuns(Path(folder))
        for i in tqdm(range(runs), desc="true runs", unit="run", disable=quiet, file=sys.stderr):
            mode = modes[i % len(modes)]
            received = small.received(mode, NoiseKey.from_seed((seed << 32) + i), seed=(seed << 32) + i)
            tests = measure_noise(received, small.spec(mode), margin=MARGIN, restarts=(small.restart,))
            values = {test.name: test.p_value for test in tests if test.p_value is not None}
            for name, p_value in values.items():
                by_test[name].append(p_value)
            least = float(holm(np.array(list(values.values()), dtype=np.float64)).min())
            suite["whole suite, by Holm"].append(least)
            suite[f"whole suite, by Holm, {mode}"].append(least)
            if i % STREAM == 0:
                watch = {kind: Watch() for kind in received.kinds()}
            for kind, one in watch.items():
                one.update(received, kind)
                if i % STREAM == STREAM - 1:
                    streams[f"e-process, {kind}, over {STREAM} runs"].append(one.all.highest_log_e_value)
    group = "True runs of the lazy trainer"
    rows = [calibration.row(name, group, values, rates=rates) for name, values in suite.items()]
    rows += [calibration.crossings(name, group, values, rates=rates) for name, values in streams.items()]
    return rows + [calibration.row(name, group, values, rates=rates) for name, values in by_test.items()]


class Watch:
    """Noise of one kind, run after run: scale, mean and neighbouring dimensions, averaged into one e-process."""

    def __init__(self) -> None:
        self.scale, self.mean, self.correlation = ScaleEProcess(), MeanEProcess(), CorrelationEProcess()
        self.all = Together()

    def update(self, received: Received, kind: str) -> None:
        tables = received.kinds()[kind]
        z = flat(tables.values())
        self.scale.update(z)
        self.mean.update(z)
        for noise in tables.values():
            self.correlation.update(noise.samples[:, :-1], noise.samples[:, 1:])
        self.all.note([self.scale, self.mean, self.correlation], z.size)


def of_normals(draws: int, rates: Sequence[float], *, seed: int, quiet: bool) -> list[Row]:
    """Every test on exact normals."""
    rng = np.random.default_rng([seed, 1])
    rows: list[Row] = []
    bar = tqdm(total=draws * len(SIZES) * len(SYNTHETIC), desc="normals", disable=quiet, file=sys.stderr)
    with bar:
        for n in SIZES:
            for name, measure in SYNTHETIC.items():
                values = [measure(rng.standard_normal(n)).p_value for _ in range(draws)]
                bar.update(draws)
                rows.append(
                    calibration.row(
                        f"{name}, {n} values", "Exact normals", [p for p in values if p is not None], rates=rates
                    )
                )
    return rows


def parse_rates(text: str) -> list[float]:
    """Nominal rates as --rates gives them, largest first.

    Raises:
        InputError: not numbers in (0, 0.5].
    """
    try:
        rates = sorted({float(part) for part in str(text).split(",")}, reverse=True)
    except ValueError as cause:
        raise InputError(f"--rates must be numbers separated by commas, got {text!r}; for instance 0.1,0.01") from cause
    for rate in rates:
        check_rate("--rates", rate, "samelaw calibrate")
    return rates


def words(found: Calibration) -> str:
    """The table for the terminal, and the verdict."""
    lines = [f"{'test':<72} {'runs':>6}  alarms at each rate: count (interval of the true rate)"]
    for line in found.rows:
        cells = ", ".join(f"{r.nominal:g}: {r.alarms} ({r.low:.2g}..{r.high:.2g})" for r in line.rates)
        lines.append(f"{line.name:<72} {line.runs:>6}  {cells}")
    lines += [f"ABOVE ITS NOMINAL RATE: {name}" for name in found.refuted]
    rates = sum(len(line.rates) for line in found.rows)
    lines.append(
        f"None of {rates} rates is refuted as above its nominal level, at an error budget of {found.alpha:g}."
        if found.holds
        else f"{len(found.refuted)} rates are above their nominal level, at an error budget of {found.alpha:g}."
    )
    return "\n".join(lines)


def page(found: Calibration) -> str:
    """The section of docs/power.md."""
    facts = found.facts
    verdict = (
        "no rate is refuted as above its nominal level"
        if found.holds
        else "refuted as above its nominal level: " + "; ".join(found.refuted)
    )
    return (
        f"Made by `samelaw calibrate --runs {facts['runs']} --synthetic {facts['synthetic']} --seed {facts['seed']}`:\n"
        f"{facts['runs']:,} runs (modes: {', '.join(facts['modes'])}), {facts['synthetic']:,} samples of exact normals "
        f"for each test. A cell gives the\nrefusals and the {calibration.CONFIDENCE:.0%} Clopper–Pearson interval of "
        f"the rate. At an error budget of {found.alpha:g} for all of it: {verdict}.\n\n{calibration.table(found)}"
    )


def write_section_exists(path: Path) -> None:
    """Refuse a page that cannot be written before the runs, not after them."""
    if not path.is_file():
        raise InputError(f"--write {path} must be a page with the marks of the calibration; there is no such file")
