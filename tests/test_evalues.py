"""E-processes keep their promise however often they are looked at, see what they are for, and merge as they may.

Optional stopping: a stream counts as an alarm if its e-process is at or above 1/alpha at *any* time. Under Ville's
inequality that has probability at most alpha; a p-value that is looked at as often is above it many times over, which
the first test shows.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from samelaw.contract.errors import InputError
from samelaw.equivalence import evalues, laws
from samelaw.equivalence.evalues import (
    Batches,
    CorrelationEProcess,
    CountEProcess,
    MeanEProcess,
    ScaleEProcess,
    Together,
)

ALPHA = 0.05
STREAMS, LOOKS, BATCH = 300, 15, 40  # the slow test: 3,000 streams of 25


def count_stream(rng, process, gap=0.0):
    return process.update(int(rng.binomial(BATCH, 0.1 * (1 + gap))), BATCH)


def correlation_stream(rng, process, gap=0.0):
    first = rng.standard_normal(BATCH)
    return process.update(first, gap * first + math.sqrt(1 - gap**2) * rng.standard_normal(BATCH))


# name -> a fresh process, how it takes in a batch with a gap, and a gap that it must see within the stream
PROCESSES = {
    "scale": (ScaleEProcess, lambda rng, p, gap=0.0: p.update((1 + gap) * rng.standard_normal(BATCH)), 0.2),
    "mean": (MeanEProcess, lambda rng, p, gap=0.0: p.update(gap + rng.standard_normal(BATCH)), 0.2),
    "correlation": (CorrelationEProcess, correlation_stream, 0.25),
    "count": (lambda: CountEProcess(0.1), count_stream, 0.8),
    "together": (
        lambda: Together(ScaleEProcess(), MeanEProcess()),
        lambda rng, p, gap=0.0: p.update((1 + gap) * rng.standard_normal(BATCH)),
        0.2,
    ),
}


def test_a_p_value_that_is_looked_at_after_every_batch_is_not_what_it_says():
    """Why e-values: of true streams, many looks at a 5 % test refuse far more than 5 %."""
    rng = np.random.default_rng(41)
    refused = 0
    for _ in range(400):
        walk = rng.standard_normal((LOOKS, BATCH)).sum(axis=1).cumsum() / np.sqrt(BATCH * np.arange(1, LOOKS + 1))
        refused += bool((np.abs(walk) > stats.norm.isf(ALPHA / 2)).any())
    assert refused > 1.5 * stats.binom.isf(1e-6, 400, ALPHA)


@pytest.mark.parametrize(("streams", "looks"), [(STREAMS, LOOKS), pytest.param(3000, 25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PROCESSES)
def test_of_true_streams_no_more_than_alpha_ever_reach_one_over_alpha(name, streams, looks):
    make, feed, _ = PROCESSES[name]
    rng = np.random.default_rng(42)
    crossed = 0
    for _ in range(streams):
        process = make()
        for _ in range(looks):
            feed(rng, process)
            if process.highest_log_e_value >= -math.log(ALPHA):  # stops as soon as it likes what it sees
                crossed += 1
                break
    assert crossed <= stats.binom.isf(1e-6, streams, ALPHA)


def test_a_likelihood_ratio_fitted_to_the_samples_that_it_judges_is_caught_by_the_same_count():
    """The fault that an e-process must not have: mean and std fitted first, their likelihood ratio looked at."""
    z = np.random.default_rng(52).standard_normal((STREAMS, 25 * BATCH))
    n = BATCH * np.arange(1, 26)
    mean = z.cumsum(axis=1)[:, n - 1] / n
    square = (z**2).cumsum(axis=1)[:, n - 1] / n
    fitted = n / 2 * (square - 1 - np.log(square - mean**2))
    crossed = (fitted.max(axis=1) >= -math.log(ALPHA)).sum()
    assert crossed > stats.binom.isf(1e-6, STREAMS, ALPHA)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_gap_is_seen_within_the_stream(name):
    """At a level of 1e-4; of 40 streams with the gap at least 32 are refused."""
    make, feed, gap = PROCESSES[name]
    rng = np.random.default_rng(43)
    seen = 0
    for _ in range(40):
        process = make()
        for _ in range(25):
            feed(rng, process, gap)
        seen += process.rejected(1e-4)
    assert seen >= 32


def test_half_a_percent_of_scale_is_seen_at_the_working_rate_with_a_few_million_values():
    rng = np.random.default_rng(44)
    process = ScaleEProcess()
    for _ in range(40):
        process.update(1.005 * rng.standard_normal(100_000))
    assert process.rejected(1e-9)


def test_the_mean_of_an_e_value_is_at_most_one():
    """Of a bounded one, min(e, 50): its mean lies below 1, but for five standard errors."""
    rng = np.random.default_rng(45)
    for make, feed, _ in PROCESSES.values():
        values = np.array([min(50.0, feed(rng, make())) for _ in range(1000)])
        assert values.mean() <= 1 + 5 * values.std() / math.sqrt(values.size)


def test_the_closed_form_of_a_scale_mixture_is_the_integral_that_it_stands_for():
    z = 1.3 * np.random.default_rng(46).standard_normal(50)
    square = float(z @ z)

    def ratio(tau, a):
        return tau ** (z.size / 2) * math.exp(-(tau - 1) * square / 2) * stats.gamma.pdf(tau, a, scale=1 / a)

    shapes = (8.0, 200.0, 5000.0, 125_000.0)
    expected = 0.0
    for a in shapes:
        wide = 12 / math.sqrt(a)
        expected += integrate.quad(ratio, max(0, 1 - wide), 1 + wide, args=(a,), epsabs=0, limit=500)[0] / len(shapes)
    assert ScaleEProcess().update(z) == pytest.approx(expected, rel=1e-6)


def test_the_closed_form_of_a_mean_mixture_is_the_integral_that_it_stands_for():
    z = 0.2 + np.random.default_rng(47).standard_normal(50)
    effects = (0.5, 0.1, 0.02, 0.004)

    def ratio(mean, r):
        return math.exp(mean * z.sum() - z.size * mean**2 / 2) * stats.norm.pdf(mean, scale=r)

    expected = sum(integrate.quad(ratio, -8 * r, 8 * r, args=(r,), epsabs=0)[0] for r in effects) / len(effects)
    assert MeanEProcess().update(z) == pytest.approx(expected, rel=1e-6)


def test_the_closed_form_of_a_count_mixture_is_the_integral_that_it_stands_for():
    rate, hits, trials = 0.1, 9, 60

    def ratio(p, s):
        null = hits * math.log(rate) + (trials - hits) * math.log1p(-rate)
        return math.exp(hits * math.log(p) + (trials - hits) * math.log1p(-p) - null) * stats.beta.pdf(
            p, s * rate, s * (1 - rate)
        )

    expected = 0.0
    for s in (10.0, 1e3, 1e5):
        wide = 10 * math.sqrt(rate / s)
        low, high = max(1e-12, rate - wide), min(1 - 1e-12, rate + wide)
        expected += integrate.quad(ratio, low, high, args=(s,), epsabs=0, limit=500)[0] / 3
    assert CountEProcess(rate).update(hits, trials) == pytest.approx(expected, rel=1e-4)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_what_was_seen_counts_and_not_how_it_was_cut_into_batches(sizes):
    z = np.random.default_rng(48).standard_normal(sum(sizes))
    for make in (ScaleEProcess, MeanEProcess):
        whole, parts = make(), make()
        whole.update(z)
        for part in np.split(z, np.cumsum(sizes)[:-1]):
            parts.update(part)
        assert parts.log_e_value == pytest.approx(whole.log_e_value, abs=1e-9)
        assert parts.samples == whole.samples


def test_an_average_needs_no_independence_and_a_product_does():
    """Ten copies of one e-value: their average is one; their product has a mean above 1."""
    rng = np.random.default_rng(49)
    copies = [evalues.from_p_value(p) for p in rng.random(1000)]
    averaged = [evalues.average([e] * 10) for e in copies]
    assert averaged == pytest.approx(copies)
    assert sum(e >= 1 / ALPHA for e in averaged) <= stats.binom.isf(1e-6, 1000, ALPHA)
    multiplied = [evalues.product([e] * 10) for e in copies]
    assert sum(e >= 1 / ALPHA for e in multiplied) > 1.5 * stats.binom.isf(1e-6, 1000, ALPHA)
    independent = [evalues.product([evalues.from_p_value(p) for p in rng.random(10)]) for _ in range(1000)]
    assert sum(e >= 1 / ALPHA for e in independent) <= stats.binom.isf(1e-6, 1000, ALPHA)


def test_a_running_product_of_batches_keeps_to_alpha():
    rng = np.random.default_rng(50)
    crossed = 0
    for _ in range(400):
        process = Batches()
        for p in rng.random(LOOKS):
            process.update(evalues.from_p_value(p))
        crossed += process.rejected(ALPHA)
    assert crossed <= stats.binom.isf(1e-6, 400, ALPHA)


def test_batches_of_small_gaps_add_up():
    """Ten runs, none of which is refused by itself at 1e-9; their product is."""
    rng = np.random.default_rng(51)
    process = Batches()
    least = 1.0
    for _ in range(30):
        p_value = laws.mean(0.08 + rng.standard_normal(2000)).p_value
        least = min(least, p_value)
        process.update(evalues.from_p_value(p_value))
    assert least > 1e-9
    assert process.rejected(1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", [ScaleEProcess, MeanEProcess])
def test_samples_that_are_not_finite_are_refused_for_good(make, bad):
    process = make()
    process.update(np.array([0.1, bad]))
    process.update(np.zeros(10))
    assert process.rejected(1e-300)
    assert process.e_value == math.inf


def test_a_refusal_stays():
    process = MeanEProcess()
    process.update(np.full(100, 3.0))
    process.update(np.full(100, -3.0))
    assert process.e_value < 1
    assert process.rejected(1e-9)


def test_p_values_and_e_values_turn_into_each_other():
    assert evalues.from_p_value(0.0) == math.inf
    assert evalues.from_p_value(1.0) == 0.5
    assert evalues.to_p_value(0.2) == 1.0
    assert evalues.to_p_value(1e9) == pytest.approx(1e-9)
    assert integrate.quad(evalues.from_p_value, 0, 1)[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "place"),
    [
        (lambda: CountEProcess(0.0), "rate"),
        (lambda: CountEProcess(1.0), "rate"),
        (lambda: CountEProcess(0.1).update(5, 4), "CountEProcess.update"),
        (lambda: CorrelationEProcess().update(np.zeros(3), np.zeros(4)), "one shape"),
        (lambda: Together().note([]), "Together"),
        (lambda: Batches().update(-1.0), "Batches.update"),
        (lambda: Batches().update(math.nan), "Batches.update"),
        (lambda: evalues.average([]), "average"),
        (lambda: evalues.product([1.0, -0.5]), "product"),
        (lambda: evalues.from_p_value(1.5), "from_p_value"),
        (lambda: evalues.from_p_value(0.5, power=1.0), "power"),
        (lambda: MeanEProcess().rejected(0.0), "alpha"),
    ],
)
def test_what_is_no_e_value_is_refused_with_its_place(call, place):
    with pytest.raises(InputError, match=place):
        call()
