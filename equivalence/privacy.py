"""Claim A1: the price that is quoted is the price of what the ledger says was run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from samelaw.contract.evidence import Disagreement, Evidence, Verdict
from samelaw.contract.figures import rounded_down, rounded_up
from samelaw.contract.ledger import Spent
from samelaw.contract.spec import PrivacySpec

A1 = "The quoted epsilon is that of the run in the ledger, and a second accountant agrees."
AGREEMENT = 0.01
"""How far above the first accountant's upper bound the second one may lie, relative to it: both are upper bounds, each
with its own discretisation. Below the first one's lower bound it may not lie at all."""


def accounted(
    statement: Mapping[str, Any],
    account: Spent,
    spec: PrivacySpec,
    *,
    agreement: float = AGREEMENT,
    scope: str = "",
) -> Evidence:
    """A1: lower <= estimate <= upper, the ledger is the declared run, and the second opinion agrees.

    Args:
        statement: "lower", "estimate" and "upper" epsilon at "delta", and "second_opinion", an upper bound on epsilon
            from another accountant, or None where that has no answer.
        account: the resolved ledger.
        spec: the declared law.

    Returns:
        EQUIVALENT within `agreement`; NOT REFUTED where there is no second opinion; or REFUTED with the first fact
        that disagrees.
    """
    lower, estimate, upper = (float(statement[key]) for key in ("lower", "estimate", "upper"))
    second = None if statement["second_opinion"] is None else float(statement["second_opinion"])
    numbers = {
        "lower": lower,
        "estimate": estimate,
        "upper": upper,
        "second_opinion": second,
        "delta": float(statement["delta"]),
        "steps": len(account.steps),
    }
    scope = scope or f"{len(account.steps)} steps, delta {spec.delta:g}"
    wrong = _ledger_differs(account, spec) or _statement_differs(numbers, spec, agreement)
    if wrong is not None:
        return Evidence("A1", A1, Verdict.REFUTED, f"The price does not hold: {wrong}.", scope, wrong, (), numbers)
    if not account.steps:
        return Evidence("A1", A1, Verdict.NOT_ASSESSED, "The ledger holds no step.", scope, None, (), numbers)
    said = (
        "no second accountant has an answer"
        if second is None
        else f"a second accountant says at most {rounded_up(second, 5)}"
    )
    summary = (
        f"Epsilon is between {rounded_down(lower, 5)} and {rounded_up(upper, 5)} (estimate {estimate:.4g}) at delta "
        f"{rounded_up(spec.delta, 5)}; {said}."
    )
    verdict = Verdict.NOT_REFUTED if second is None else Verdict.EQUIVALENT
    return Evidence("A1", A1, verdict, summary, scope, None, (), numbers)


def _ledger_differs(account: Spent, spec: PrivacySpec) -> Disagreement | None:
    """The first entry that is not what the law declares."""
    if account.opened.get("law_digest") != spec.digest():
        return Disagreement("ledger, opening, law_digest", spec.digest(), str(account.opened.get("law_digest")))
    noise_std = spec.noise_multiplier * spec.clip_norm
    for index, step in enumerate(account.steps):
        declared = {
            "step": index,
            "lr": spec.schedule.rate(index),
            "noise_std": noise_std,
            "sampler": "keyed-poisson",
        }
        for name, value in declared.items():
            if step.get(name) != value:
                return Disagreement(f"ledger, step {index}, {name}", str(value), str(step.get(name)))
    return None


def _statement_differs(numbers: Mapping[str, Any], spec: PrivacySpec, agreement: float) -> Disagreement | None:
    """The first way in which the quoted numbers are inconsistent."""
    lower, estimate, upper, second = (numbers[k] for k in ("lower", "estimate", "upper", "second_opinion"))
    given = [lower, estimate, upper] + ([] if second is None else [second])
    if not all(math.isfinite(x) and x >= 0 for x in given):
        return Disagreement("statement", "finite epsilons >= 0", ", ".join(map(str, given)))
    if not lower <= estimate <= upper:
        return Disagreement("statement", "lower <= estimate <= upper", f"{lower}, {estimate}, {upper}")
    if numbers["delta"] != spec.delta:
        return Disagreement("statement, delta", str(spec.delta), str(numbers["delta"]))
    if second is not None and not lower <= second <= upper * (1 + agreement):
        return Disagreement(
            "second opinion", f"between {lower:.6g} and {upper:.6g} (+{agreement:.0%})", f"{second:.6g}"
        )
    return None
