"""Do the tests see what they say they see? Detection of planted gaps, next to the gap that each test claimed.

A row's promise is a probability; it is refuted if so few detections would have had a probability below the error
budget of this judgement (all rows together, by Holm). A gap below what its test claims to detect promises nothing; its
rate is shown all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from samelaw.equivalence.budget import holm
from samelaw.equivalence.calibration import CONFIDENCE
from samelaw.equivalence.laws import check_rate

SCHEMA = "samelaw.power/1"


@dataclass(frozen=True)
class Detection:
    """How often a planted gap was seen.

    Attributes:
        name: the gap, with its size.
        group: how it was planted.
        test: the test that is meant to see it, and `first`, the one with the smallest p-value in most runs.
        samples: values that the test had.
        size, detectable: of the gap, and as claimed by the test; None where there is no such number.
        promised: probability of detection that the test claims for this gap; None when it claims none.
        detected, runs: how often the suite (or the test alone) refused.
        low, high: Clopper-Pearson interval of the rate, at confidence CONFIDENCE.
        shortfall: probability of so few detections if the promise held; None without one.
    """

    name: str
    group: str
    test: str
    first: str
    samples: int
    size: float | None
    detectable: float | None
    promised: float | None
    detected: int
    runs: int
    low: float
    high: float
    shortfall: float | None


@dataclass(frozen=True)
class Power:
    """Detection rates as measured.

    Attributes:
        rows: every planted gap.
        alpha: error budget of this judgement.
        refuted: names of the rows that were detected less often than promised.
        facts: what was run.
    """

    rows: tuple[Detection, ...]
    alpha: float
    refuted: tuple[str, ...]
    facts: Mapping[str, Any]

    @property
    def holds(self) -> bool:
        return bool(self.rows) and not self.refuted

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "holds": self.holds, "confidence": CONFIDENCE, **asdict(self)}


def detection(
    name: str,
    group: str,
    test: str,
    firsts: Sequence[str | None],
    *,
    samples: int,
    size: float | None,
    detectable: float | None,
    promised: float | None,
) -> Detection:
    """A row from runs: for each the test that refused first, or None where nothing did."""
    runs, seen = len(firsts), [one for one in firsts if one is not None]
    interval = stats.binomtest(len(seen), runs).proportion_ci(CONFIDENCE, method="exact")
    shortfall = None if promised is None else float(stats.binom.cdf(len(seen), runs, promised))
    first = Counter(seen).most_common(1)[0][0] if seen else ""
    return Detection(
        name, group, test, first, samples, size, detectable, promised, len(seen), runs,
        float(interval.low), float(interval.high), shortfall,
    )  # fmt: skip


def judge(rows: Sequence[Detection], *, alpha: float, facts: Mapping[str, Any]) -> Power:
    """Refute the promises that were not met, all of them together on one budget.

    Raises:
        InputError: alpha is not in (0, 0.5].
    """
    check_rate("alpha", alpha, "the judgement of power")
    promises = [(row.name, row.shortfall) for row in rows if row.shortfall is not None]
    adjusted = holm(np.array([p for _, p in promises], dtype=np.float64))
    refuted = tuple(name for (name, _), p in zip(promises, adjusted.tolist(), strict=True) if p <= alpha)
    return Power(tuple(rows), alpha, refuted, dict(facts))


def table(power: Power) -> str:
    """The rows as Markdown."""
    lines: list[str] = []
    for group in dict.fromkeys(row.group for row in power.rows):
        lines += [
            f"**{group}**",
            "",
            "| planted | meant for | values | claimed detectable | promised | detected | rate | seen first by |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in (row for row in power.rows if row.group == group):
            detectable = "–" if row.detectable is None else f"{row.detectable:.3g}"
            promised = "none" if row.promised is None else f"{row.promised:.6g}"
            lines.append(
                f"| {row.name} | {row.test} | {row.samples:,} | {detectable} | {promised} | {row.detected} of "
                f"{row.runs} | {row.low:.3g}–{row.high:.3g} | {row.first or '–'} |"
            )
        lines.append("")
    return "\n".join(lines)
