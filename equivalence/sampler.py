"""Claim P1: every example joins every batch by a draw of its own, at the declared rate.

The sampler is asked, not the training loop: a few thousand batches are drawn ahead and looked at as a table of yes and
no. Every test is exact for that table (binomial, or a bound that holds for every sample size), so its false-alarm rate
is what it says. With the key each batch is also recomputed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy import optimize, special, stats

from samelaw.contract.evidence import Disagreement, Evidence, TestResult, Verdict
from samelaw.equivalence import laws
from samelaw.equivalence.budget import Waiting

P1 = "Every example joins every batch independently, with the probability that is priced."
RECOMPUTED = "batches, recomputed with the key"

Sampler = Callable[[int], Int64[np.ndarray, "_drawn"]]
"""Indices, ascending, of the examples that join the batch of a step."""


def sampled(
    draw: Sampler,
    *,
    steps: int,
    examples: int,
    sampling_rate: float,
    expected: Sampler | None = None,
    false_alarm: float = laws.FALSE_ALARM,
    false_pass: float = laws.FALSE_PASS,
    scope: str = "",
) -> Evidence:
    """P1: the batches of the steps 0, ..., steps - 1.

    Args:
        draw: the trainer's sampler.
        steps, examples: of the run; their product is the number of draws looked at.
        sampling_rate: q in (0, 1), as it is priced.
        expected: the definition's sampler under the run's key, to compare with exactly.
        false_alarm: for all tests together.
        false_pass: of each test, at its detectable gap.

    Returns:
        EQUAL if every batch is the recomputed one and no test refuses; NOT REFUTED without the key.
    """
    found = measure_sampled(
        draw, steps=steps, examples=examples, sampling_rate=sampling_rate, expected=expected, false_pass=false_pass,
        scope=scope,
    )  # fmt: skip
    return found if isinstance(found, Evidence) else found.conclude(laws.share(false_alarm, found.tests))


def measure_sampled(
    draw: Sampler,
    *,
    steps: int,
    examples: int,
    sampling_rate: float,
    expected: Sampler | None = None,
    false_pass: float = laws.FALSE_PASS,
    scope: str = "",
) -> Evidence | Waiting:
    """P1, drawn and not yet judged: its tests wait for their share of a suite's budget. See `sampled`."""
    batches = [np.asarray(draw(step), dtype=np.int64) for step in range(steps)]
    scope = scope or f"{steps} batches of {examples} examples at rate {sampling_rate:g}"
    misplaced = _misplaced(batches, examples)
    if misplaced is not None:
        return Evidence("P1", P1, Verdict.REFUTED, f"No sample of the examples: {misplaced}.", scope, misplaced)
    if not steps or not 0 < sampling_rate < 1:
        return Evidence("P1", P1, Verdict.NOT_ASSESSED, "Nothing was sampled.", scope)
    joined = np.zeros((steps, examples), dtype=bool)
    for step, batch in enumerate(batches):
        joined[step, batch] = True
    exact = None if expected is None else _recomputed(batches, expected)
    lags = _lags(steps, sampling_rate)
    return Waiting(
        3 + len(lags),
        lambda each: _judged(joined, _tests(joined, sampling_rate, lags, each, false_pass), exact, scope),
    )


def _judged(
    joined: Bool[np.ndarray, "steps examples"],
    tests: list[TestResult],
    exact: tuple[TestResult, Disagreement | None] | None,
    scope: str,
) -> Evidence:
    wrong = None
    if exact is not None:
        test, wrong = exact
        tests = [*tests, test]
    refuted = [test for test in tests if test.verdict is Verdict.REFUTED]
    steps, examples = joined.shape
    numbers = {"steps": steps, "examples": examples, "draws": joined.size, "joined": int(joined.sum())}
    if refuted:
        wrong = wrong or _place(refuted[0])
        summary = f"{len(refuted)} of {len(tests)} tests refuse the sampler, first: {refuted[0].name}."
        return Evidence("P1", P1, Verdict.REFUTED, summary, scope, wrong, tuple(tests), numbers)
    rate = tests[0].statistic
    summary = (
        f"None of {len(tests)} tests refuses {joined.size:,} draws; the rate is off by {rate:.3%} "
        f"(a gap of {tests[0].detectable or 0:.3%} would have been seen)."
    )
    verdict = Verdict.EQUAL if exact is not None else Verdict.NOT_REFUTED
    return Evidence("P1", P1, verdict, summary, scope, None, tuple(tests), numbers)


def _misplaced(batches: Sequence[np.ndarray], examples: int) -> Disagreement | None:
    """The first batch that is no ascending selection of 0, ..., examples - 1."""
    for step, batch in enumerate(batches):
        inside = batch.size == 0 or (batch[0] >= 0 and batch[-1] < examples)
        if not inside or (np.diff(batch) <= 0).any():
            return Disagreement(f"batch of step {step}", f"ascending indices in 0..{examples - 1}", "others")
    return None


def _lags(steps: int, rate: float) -> list[int]:
    """Distances at which an example's draws are held against each other: the next step, and the next pass."""
    return sorted({lag for lag in (1, round(1 / rate)) if 2 * lag <= steps})


def _tests(
    joined: Bool[np.ndarray, "steps examples"], rate: float, lags: Sequence[int], each: float, false_pass: float
) -> list[TestResult]:
    steps = len(joined)
    tests = [
        _share_of(joined, rate, each, false_pass, "share of examples that join"),
        _sizes(joined, rate, each, false_pass),
        _examples(joined, rate, each),
    ]
    for lag in lags:
        # Disjoint pairs of steps: only those are independent of one another.
        first = np.flatnonzero(np.arange(steps - lag) % (2 * lag) < lag)
        both = joined[first] & joined[first + lag]
        tests.append(
            _share_of(both, rate**2, each, false_pass, f"share of examples that join twice, {lag} steps apart")
        )
    return tests


def _share_of(joined: np.ndarray, rate: float, false_alarm: float, false_pass: float, name: str) -> TestResult:
    """Exact two-sided binomial test of a share; `detectable` is the relative excess that is noticed."""
    n, count = joined.size, int(joined.sum())
    least = int(stats.binom.ppf(false_alarm / 2, n, rate))
    most = int(stats.binom.isf(false_alarm / 2, n, rate))

    def missed(log_factor: float) -> float:
        return float(stats.binom.cdf(most, n, min(1.0, rate * math.exp(log_factor)))) - false_pass

    detectable = None
    if most < n:
        found = float(optimize.brentq(missed, 0.0, -math.log(rate), xtol=1e-9))  # pyright: ignore[reportArgumentType]
        detectable = math.expm1(found)
    mean = n * rate
    bound = most - mean if count >= mean else mean - least
    return TestResult(
        name,
        Verdict.NOT_REFUTED if least <= count <= most else Verdict.REFUTED,
        abs(count - mean) / mean,
        bound / mean,
        n,
        false_alarm,
        detectable,
        1 - false_pass,
        "relative excess of the share",
        note=f"{count} of {n}, {mean:.1f} expected",
        p_value=float(_two_sided(np.array([count]), n, rate)[0]),
    )


def _sizes(joined: np.ndarray, rate: float, false_alarm: float, false_pass: float) -> TestResult:
    """Batch sizes against the binomial law; Massart's bound holds for laws on the integers too."""
    steps, examples = joined.shape
    grid = np.arange(examples + 1)
    found = np.cumsum(np.bincount(joined.sum(axis=1), minlength=examples + 1)) / steps
    distance = float(np.abs(found - stats.binom.cdf(grid, examples, rate)).max())
    threshold = math.sqrt(math.log(2 / false_alarm) / (2 * steps))
    detectable = threshold + math.sqrt(math.log(1 / false_pass) / (2 * steps))
    return TestResult(
        "batch sizes",
        Verdict.NOT_REFUTED if distance <= threshold else Verdict.REFUTED,
        distance,
        threshold,
        steps,
        false_alarm,
        detectable if detectable < 1 else None,
        1 - false_pass,
        "distance of distribution functions",
        p_value=min(1.0, 2 * math.exp(-2 * steps * distance**2)),
    )


def _examples(joined: np.ndarray, rate: float, false_alarm: float) -> TestResult:
    """How often each example joins: no count outside its binomial interval, a share of the rate for each example."""
    steps, examples = joined.shape
    counts = joined.sum(axis=0)
    least = int(stats.binom.ppf(false_alarm / 2 / examples, steps, rate))
    most = int(stats.binom.isf(false_alarm / 2 / examples, steps, rate))
    outside = np.flatnonzero((counts < least) | (counts > most))
    note = f"counts {int(counts.min())} to {int(counts.max())}, allowed {least} to {most}"
    return TestResult(
        "how often each example joins",
        Verdict.REFUTED if outside.size else Verdict.NOT_REFUTED,
        float(outside.size),
        0.0,
        joined.size,
        false_alarm,
        None,
        None,
        "examples with another rate",
        note=note,
        p_value=min(1.0, examples * float(_two_sided(counts, steps, rate).min())),  # Bonferroni over the examples
    )


def _two_sided(counts: Int64[np.ndarray, "_n"], n: int, rate: float) -> Float64[np.ndarray, "_n"]:
    """Twice the smaller binomial tail of each count, at most 1; the incomplete beta function is exact in far tails."""
    counts = counts.astype(np.float64)
    with np.errstate(invalid="ignore"):
        below = np.where(counts >= n, 1.0, special.betaincc(counts + 1, np.maximum(n - counts, 1e-300), rate))
        above = np.where(counts <= 0, 1.0, special.betainc(np.maximum(counts, 1e-300), n - counts + 1, rate))
    return np.minimum(1.0, 2 * np.minimum(below, above))


def _recomputed(batches: Sequence[np.ndarray], expected: Sampler) -> tuple[TestResult, Disagreement | None]:
    wrong, first, values = 0, None, 0
    for step, batch in enumerate(batches):
        wanted = expected(step)
        values += wanted.size
        if not np.array_equal(batch, wanted):
            wrong += 1
            first = first or Disagreement(
                f"batch of step {step}", f"the {wanted.size} examples that the key draws", f"{batch.size} examples"
            )
    verdict = Verdict.REFUTED if wrong else Verdict.EQUAL
    note = "to the bit: no error rate"
    test = TestResult(RECOMPUTED, verdict, float(wrong), 0.0, len(batches), 0.0, 1.0, 1.0, "batches that differ", note)
    return test, first


def _place(test: TestResult) -> Disagreement:
    return Disagreement(test.name, f"at most {test.threshold:.6g} ({test.gap})", f"{test.statistic:.6g}; {test.note}")
