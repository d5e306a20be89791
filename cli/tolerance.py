"""What a tolerance could cost: a scale of noise that would have passed, as the epsilon that it would make.

A test of law never says "exactly". Noise whose std is a relative gap r too small is noise of a smaller multiplier,
sigma (1 - r), so the accountant prices it like any other. Of the statistics that the tests look at, the scale is the
one with such a price; a distance of distribution functions implies no bound on epsilon at all (docs/power.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from samelaw.accounting.engines import evaluate
from samelaw.accounting.mechanism import SampledGaussian
from samelaw.accounting.statement import PrivacyStatement
from samelaw.contract.errors import InputError
from samelaw.contract.evidence import Evidence, TestResult, Verdict
from samelaw.contract.figures import rounded_up

PARTS = ("touched rows", "idle rows", "dense parameters")
RECOMPUTED_TABLES = "settlements, recomputed with the key"
RECOMPUTED_DENSE = "dense parameters, recomputed with the key"


@dataclass(frozen=True)
class Tolerance:
    """A gap that would have passed, and its price.

    Attributes:
        kind: "margin" (equivalence was concluded within it) or "detectable" (a larger one would have been refuted).
        part: whose noise it is: the part that the tests know least about.
        gap: relative amount by which the std could be too small.
        epsilon, epsilon_if: upper bounds, as quoted and at the smaller std.
        delta: where both are quoted.
        sentence: the same in words.
    """

    kind: str
    part: str
    gap: float
    epsilon: float
    epsilon_if: float
    delta: float
    sentence: str


def epsilon_if_smaller(mechanism: SampledGaussian, delta: float, gap: float) -> float:
    """Upper bound of epsilon, were the std of the noise smaller by the relative `gap`; infinite from a gap of 1 on.

    Raises:
        InputError: the gap is negative or no number.
    """
    if not gap >= 0:
        raise InputError(f"gap must be >= 0, got {gap!r}: it is the relative amount by which the std is too small")
    if gap >= 1:
        return math.inf
    smaller = replace(mechanism, noise_multiplier=mechanism.noise_multiplier * (1 - gap))
    return evaluate(smaller, delta).interval.upper


def tolerances(law: Evidence, statement: PrivacyStatement) -> list[Tolerance]:
    """What claim L1 of the priced run leaves open, at most one tolerance of each kind; none if it was refuted."""
    if law.verdict in (Verdict.REFUTED, Verdict.NOT_ASSESSED):
        return []
    tests = {test.name: test for test in law.tests}
    exact = {name for name, test in tests.items() if test.verdict is Verdict.EQUAL}
    parts = [p for p in PARTS if f"scale, {p}" in tests and not (p == PARTS[2] and RECOMPUTED_DENSE in exact)]
    scales = [(part, tests[f"scale, {part}"]) for part in parts]
    assessed = [(part, test) for part, test in scales if test.verdict is not Verdict.NOT_ASSESSED]
    found: list[Tolerance] = []
    margin = 1 - math.exp(-float(law.numbers["margin"]))
    if assessed and all(test.verdict is Verdict.EQUIVALENT for _, test in assessed):
        found.append(_tolerance("margin", " and ".join(parts), margin, statement, exact))
    if assessed:
        part, test = max(assessed, key=_gap)
        found.append(_tolerance("detectable", part, float(test.detectable or 1.0), statement, exact))
    return found


def with_tolerances(
    evidence: Sequence[Evidence], statement: PrivacyStatement, *, scope: str
) -> tuple[list[Evidence], list[Tolerance]]:
    """The evidence with the tolerances of the priced run's L1 among its numbers, and these tolerances."""
    priced: list[Evidence] = []
    found: list[Tolerance] = []
    for claim in evidence:
        if claim.claim == "L1" and claim.scope == scope and not found:
            found = tolerances(claim, statement)
            claim = replace(claim, numbers={**claim.numbers, "tolerances": [asdict(one) for one in found]})
        priced.append(claim)
    return priced, found


def _gap(scale: tuple[str, TestResult]) -> float:
    return float(scale[1].detectable or math.inf)


def _tolerance(kind: str, part: str, gap: float, statement: PrivacyStatement, exact: set[str]) -> Tolerance:
    upper = epsilon_if_smaller(statement.mechanism, statement.delta, gap)
    said = "no bound on epsilon would be left" if math.isinf(upper) else f"epsilon at most {rounded_up(upper)}"
    cost = said if math.isinf(upper) else f"it would make {said} instead of {rounded_up(statement.upper)}"
    percent = rounded_up(100 * gap)
    sentence = (
        f"A noise scale {percent} % too small (in {part}) could have been called equivalent by the tests of law; "
        f"{cost}."
        if kind == "margin"
        else f"A noise scale less than {percent} % too small (in {part}) might not have been refuted by the tests of "
        f"law; {cost}."
    )
    if RECOMPUTED_TABLES in exact:
        sentence += " Recomputing every settlement with the key leaves no such gap in the tables of this run."
    return Tolerance(kind, part, gap, statement.upper, upper, statement.delta, sentence)
