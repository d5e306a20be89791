"""One budget of false alarms for a whole suite of tests, spent by Holm's step-down.

Holm orders the p-values of all tests of the suite, and rejects as long as the k-th smallest is at most
`false_alarm / (tests - k + 1)`. However the tests depend on each other, a correct trainer is refused by one or more of
them with probability at most `false_alarm`. Its first step is Bonferroni's share: that decides *whether* anything is
refused, and it is the rate at which every test states its detectable gap. The later steps name further culprits.

    budget = Budget(1e-9)
    suite = [noise_law.measure(run, spec), ..., claims.replay(eager, lazy)]  # claims that wait, and exact ones
    evidence = budget.conclude(suite)

Source: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from samelaw.contract.evidence import Disagreement, Evidence, TestResult, Verdict
from samelaw.equivalence.laws import FALSE_ALARM, check_rate


@runtime_checkable
class Pending(Protocol):
    """A claim that waits for its share of a budget: noise_law.MeasuredLaw, or Waiting."""

    @property
    def tests(self) -> int:
        """How many tests it will spend the share on."""
        ...

    def conclude(self, share: float) -> Evidence:
        """The evidence, every test judged at this false-alarm rate."""
        ...


@dataclass(frozen=True)
class Waiting:
    """A claim of a fixed number of tests, as a function of the rate at which each is to be judged."""

    tests: int
    judge: Callable[[float], Evidence]

    def conclude(self, share: float) -> Evidence:
        return self.judge(share)


@dataclass(frozen=True)
class Budget:
    """Total probability of refusing a correct trainer, over all tests of a suite.

    Args:
        false_alarm: in (0, 0.5].

    Guarantees:
        H1  With p-values that are valid for a correct trainer, `judge` refuses one or more of its tests with
            probability <= false_alarm, whatever the dependence between them.
        H2  `judge` refuses every test that Bonferroni's share refuses.

    Raises:
        InputError: false_alarm is not in (0, 0.5].
    """

    false_alarm: float = FALSE_ALARM

    def __post_init__(self) -> None:
        check_rate("false_alarm", self.false_alarm, "the error budget of a suite")

    def share(self, tests: int) -> float:
        """What each of `tests` tests may spend in Holm's first step."""
        return self.false_alarm / max(1, tests)

    def conclude(self, suite: Sequence[Evidence | Pending]) -> list[Evidence]:
        """Judge the claims that wait, each test at its share, then Holm over all of the suite.

        Claims that were judged before keep their rates: `spent` counts them, and they belong to the same budget only
        if they are exact, or were given a part of it.
        """
        each = self.share(sum(claim.tests for claim in suite if not isinstance(claim, Evidence)))
        return self.judge([claim if isinstance(claim, Evidence) else claim.conclude(each) for claim in suite])

    def judge(self, evidence: Sequence[Evidence]) -> list[Evidence]:
        """Holm over every p-value of a suite: fill in adjusted p-values and refute what the later steps refuse.

        Tests that were refuted at their own rate stay so; `spent` says whether those rates kept to the budget.
        """
        p_values = [test.p_value for claim in evidence for test in claim.tests if test.p_value is not None]
        adjusted = iter(holm(np.array(p_values, dtype=np.float64)).tolist())
        return [self._judged(claim, [_adjusted(test, adjusted) for test in claim.tests]) for claim in evidence]

    def spent(self, evidence: Sequence[Evidence]) -> float:
        """Sum of the rates at which the tests of a suite were judged: at most `false_alarm` if all kept to a share."""
        return sum(test.false_alarm for claim in evidence for test in claim.tests if test.p_value is not None)

    def _judged(self, claim: Evidence, tests: list[TestResult]) -> Evidence:
        """The claim with what Holm's later steps refuse."""
        tests = [self._stepped_down(test) for test in tests]
        newly = [test for test in tests if test.verdict is Verdict.REFUTED]
        if claim.verdict is Verdict.REFUTED or not newly:
            return replace(claim, tests=tuple(tests))
        worst = newly[0]
        wrong = Disagreement(
            worst.name,
            f"a p-value above {self.false_alarm:g}, adjusted for all tests of the suite",
            f"{worst.adjusted_p_value:.3g} ({worst.gap}: {worst.statistic:.6g})",
        )
        summary = f"{len(newly)} of {len(tests)} tests refused in a later step of Holm's, first: {worst.name}."
        return replace(claim, tests=tuple(tests), verdict=Verdict.REFUTED, summary=summary, first_disagreement=wrong)

    def _stepped_down(self, test: TestResult) -> TestResult:
        refused = test.adjusted_p_value is not None and test.adjusted_p_value <= self.false_alarm
        if not refused or test.verdict in (Verdict.REFUTED, Verdict.NOT_ASSESSED):
            return test
        note = f"refused in a later step of Holm's: adjusted p-value {test.adjusted_p_value:.3g}"
        return replace(test, verdict=Verdict.REFUTED, note=f"{note}; {test.note}" if test.note else note)


def holm(p_values: Float64[np.ndarray, "tests"]) -> Float64[np.ndarray, "tests"]:
    """Holm's adjusted p-values: the smallest total false-alarm rate at which each test is rejected.

    As statsmodels' multipletests(method="holm"), which a test holds it to; that takes milliseconds a call, and a
    calibration calls it thousands of times.

    Raises:
        ValueError: a p-value is not in [0, 1].
    """
    if p_values.size == 0:
        return p_values
    if not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"p_values must lie in [0, 1], got {p_values.min()}..{p_values.max()} in holm")
    order = np.argsort(p_values, kind="stable")
    left = np.arange(p_values.size, 0, -1)  # tests that are not rejected yet, itself among them
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(left * p_values[order]))
    return adjusted


def _adjusted(test: TestResult, adjusted: Iterator[float]) -> TestResult:
    return test if test.p_value is None else replace(test, adjusted_p_value=next(adjusted))
