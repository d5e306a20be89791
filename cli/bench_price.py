"""What the bench could not have seen, as the epsilon that it would cost a run of the user's parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from samelaw.accounting.engines import evaluate
from samelaw.accounting.mechanism import SampledGaussian
from samelaw.cli.tolerance import epsilon_if_smaller
from samelaw.contract.errors import InputError
from samelaw.contract.evidence import Evidence, TestResult, Verdict
from samelaw.contract.figures import rounded_up
from samelaw.equivalence.bench.claims import MARGIN

NOISE = ("B4", "B5", "B6", "B7", "B10")
"""Claims with tests of scale."""


def mechanism_of(words: Sequence[str]) -> tuple[SampledGaussian, float]:
    """SIGMA RATE STEPS DELTA of `--price`.

    Raises:
        InputError: they are no parameters of a run.
    """
    try:
        sigma, rate, steps, delta = float(words[0]), float(words[1]), int(words[2]), float(words[3])
    except ValueError as cause:
        raise InputError(f"--price takes SIGMA RATE STEPS DELTA, for instance 1.1 0.01 10000 1e-6: {cause}") from cause
    if not sigma > 0:
        raise InputError(f"SIGMA of --price must be > 0, got {sigma}: without noise there is no epsilon")
    if not 0 < delta < 1:
        raise InputError(f"DELTA of --price must be in (0, 1), got {delta}")
    return SampledGaussian(rate, sigma, steps), delta


def prices(evidence: Sequence[Evidence], mechanism: SampledGaussian, delta: float) -> list[dict[str, Any]]:
    """The margin, if equivalence was concluded everywhere, and the least that any test of scale would have missed.

    Empty if a claim about noise was refuted or none was assessed: then there is no tolerance to price.
    """
    claims = [item for item in evidence if item.claim in NOISE and item.verdict is not Verdict.NOT_ASSESSED]
    scales = [
        (f"{item.claim}, {test.name}", test)
        for item in claims
        for test in item.tests
        if test.name.startswith("scale") and test.verdict is not Verdict.NOT_ASSESSED
    ]
    if not scales or any(item.verdict is Verdict.REFUTED for item in claims):
        return []
    quoted = evaluate(mechanism, delta).interval.upper
    found: list[dict[str, Any]] = []
    if all(test.verdict is Verdict.EQUIVALENT for _, test in scales):
        found.append(_price("margin", "every part looked at", 1 - math.exp(-MARGIN), mechanism, delta, quoted))
    part, test = max(scales, key=_gap)
    found.append(_price("detectable", part, _gap((part, test)), mechanism, delta, quoted))
    return found


def _gap(scale: tuple[str, TestResult]) -> float:
    return 1.0 if scale[1].detectable is None else scale[1].detectable


def _price(kind: str, part: str, gap: float, mechanism: SampledGaussian, delta: float, quoted: float) -> dict[str, Any]:
    upper = epsilon_if_smaller(mechanism, delta, gap)
    percent = rounded_up(100 * gap)
    start = f"A noise scale {'' if kind == 'margin' else 'less than '}{percent} % too small ({part}) "
    middle = "could have been called equivalent" if kind == "margin" else "might not have been refuted"
    cost = (
        "no bound on epsilon would be left"
        if math.isinf(upper)
        else f"at these parameters it would make epsilon at most {rounded_up(upper)} instead of {rounded_up(quoted)}"
    )
    return {
        "kind": kind,
        "part": part,
        "gap": gap,
        "delta": delta,
        "epsilon": quoted,
        "epsilon_if": None if math.isinf(upper) else upper,
        "sentence": f"{start}{middle}; {cost} (delta {delta:g}).",
    }
