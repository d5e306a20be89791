"""Do the tests refuse a correct trainer as rarely as they say? p-values of many true runs, counted at nominal rates.

At a working rate of 1e-9 no number of runs would show anything, so the p-values themselves are judged: of R runs, how
many fell at or below 0.1, 0.01, 0.001, and is their distribution anywhere above uniform. Both are one-sided: a test may
refuse less often than it says (a discrete statistic, a conservative bound), never more often.

The judgement has an error budget of its own: all its tests together, by Holm, call a well calibrated suite badly
calibrated with probability `alpha` at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from samelaw.contract.errors import InputError
from samelaw.equivalence.budget import holm
from samelaw.equivalence.laws import check_rate

RATES = (0.1, 0.01, 0.001)
CONFIDENCE = 0.99
SCHEMA = "samelaw.calibration/1"


@dataclass(frozen=True)
class Rate:
    """How often a test refused at a nominal rate.

    Attributes:
        nominal: the rate that it was held to.
        alarms: refusals.
        low, high: Clopper-Pearson interval of the true rate, at confidence CONFIDENCE.
        excess: probability of so many alarms or more, if the true rate were the nominal one.
    """

    nominal: float
    alarms: int
    low: float
    high: float
    excess: float


@dataclass(frozen=True)
class Row:
    """One test, or the whole suite, on many correct runs.

    Attributes:
        group: what it ran on: real runs, or synthetic normals.
        runs: p-values.
        rates: by nominal rate.
        excess: p-value of the one-sided Kolmogorov-Smirnov test of p-values against uniform ones; None where only
            crossings were seen (e-processes).
    """

    name: str
    group: str
    runs: int
    rates: tuple[Rate, ...]
    excess: float | None


@dataclass(frozen=True)
class Calibration:
    """False-alarm rates as measured.

    Attributes:
        rows: every test and suite.
        alpha: error budget of this judgement.
        refuted: names of the rows whose rate is above its nominal level at that budget, with the nominal rate (or
            "uniformity").
        facts: what was run, for the reader.
    """

    rows: tuple[Row, ...]
    alpha: float
    refuted: tuple[str, ...]
    facts: Mapping[str, Any]

    @property
    def holds(self) -> bool:
        return bool(self.rows) and not self.refuted

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "holds": self.holds, "confidence": CONFIDENCE, **asdict(self)}


def row(name: str, group: str, p_values: Sequence[float], *, rates: Sequence[float] = RATES) -> Row:
    """A test's p-values, one from each correct run, against its nominal rates.

    Raises:
        InputError: no p-values, or a rate is not in (0, 0.5].
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.size == 0:
        raise InputError(f"p_values must hold at least one value, got none in the calibration of {name!r}")
    counted = tuple(count(int((values <= rate).sum()), values.size, rate, name) for rate in rates)
    ordered = np.sort(values)
    above = float((np.arange(1, values.size + 1) / values.size - ordered).max())
    return Row(name, group, values.size, counted, float(stats.ksone.sf(max(0.0, above), values.size)))


def crossings(name: str, group: str, highest: Sequence[float], *, rates: Sequence[float] = RATES) -> Row:
    """An e-process over many streams: how often its highest ln e-value reached ln(1 / rate)."""
    values = np.asarray(highest, dtype=np.float64)
    counted = tuple(count(int((values >= -np.log(rate)).sum()), values.size, rate, name) for rate in rates)
    return Row(name, group, values.size, counted, None)


def count(alarms: int, runs: int, nominal: float, place: str) -> Rate:
    """Alarms of so many runs as a rate with its interval.

    Raises:
        InputError: the nominal rate is not in (0, 0.5].
    """
    check_rate("rate", nominal, f"the calibration of {place!r}")
    interval = stats.binomtest(alarms, runs, nominal).proportion_ci(CONFIDENCE, method="exact")
    return Rate(
        nominal, alarms, float(interval.low), float(interval.high), float(stats.binom.sf(alarms - 1, runs, nominal))
    )


def judge(rows: Sequence[Row], *, alpha: float, facts: Mapping[str, Any]) -> Calibration:
    """Refute the rows whose rate is above its nominal level, all of them together on one budget.

    Raises:
        InputError: alpha is not in (0, 0.5].
    """
    check_rate("alpha", alpha, "the judgement of a calibration")
    named: list[tuple[str, float]] = []
    for line in rows:
        named += [(f"{line.name} ({line.group}) at {rate.nominal:g}", rate.excess) for rate in line.rates]
        if line.excess is not None:
            named.append((f"{line.name} ({line.group}), uniformity", line.excess))
    adjusted = holm(np.array([p for _, p in named], dtype=np.float64))
    refuted = tuple(name for (name, _), p in zip(named, adjusted.tolist(), strict=True) if p <= alpha)
    return Calibration(tuple(rows), alpha, refuted, dict(facts))


def table(calibration: Calibration) -> str:
    """The calibration as a Markdown table: alarms of runs, and the interval of the rate."""
    nominal = [rate.nominal for rate in calibration.rows[0].rates] if calibration.rows else []
    lines: list[str] = []
    for group in dict.fromkeys(line.group for line in calibration.rows):
        lines += [f"**{group}**", "", "| test | runs | " + " | ".join(f"at {rate:g}" for rate in nominal) + " |"]
        lines.append("|---|---|" + "---|" * len(nominal))
        for line in (line for line in calibration.rows if line.group == group):
            cells = [f"{rate.alarms}: {rate.low:.2g}–{rate.high:.2g}" for rate in line.rates]
            lines.append(f"| {line.name} | {line.runs:,} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
