"""Lower bounds on epsilon: the published figures, and that none is above the truth more often than it says.

Coverage is tested on mechanisms for which the claim is *tight*, so that a bound which is only a little too large fails.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from samelaw.accounting.closed_forms import gaussian_log_delta
from samelaw.audit import lower_bounds, one_run
from samelaw.audit.lower_bounds import Halves
from samelaw.contract.errors import InputError

DELTA = 1e-5


def quantiles(n, mean=0.0):
    """n Gaussian scores without luck: mid-quantiles, scaled to the variance n - 1 of a sample."""
    z = special.ndtri((np.arange(n) + 0.5) / n)
    return mean + z * math.sqrt((n - 1) / np.sum(z**2))


def gaussian_halves(mu, n, rng):
    return Halves.of(rng.normal(mu, 1, n), rng.normal(0, 1, n))


def covers(failures, audits, error):
    """Whether so many failures are consistent with a failure rate <= error: false alarm below 1e-6."""
    return stats.binom.sf(failures - 1, audits, error) > 1e-6


# The published figures: sigma 1, epsilon(1e-5) = 4.377.


@pytest.mark.parametrize(("n", "published"), [(1_000, 3.93), (10_000, 4.29), (1_000_000, 4.37)])
def test_the_gaussian_bound_is_the_published_figure(n, published):
    # The published figures are of one draw each. The std of mu is sqrt(2/n + 1/4n), and d(epsilon)/d(mu) is 5 here:
    # within one and a half of that, and half a digit.
    mu = lower_bounds.gaussian_mu(quantiles(n, 1.0), quantiles(n), confidence=0.95)
    error = 5 * math.sqrt(2.25 / n)
    assert lower_bounds.epsilon_of_mu(mu, DELTA) == pytest.approx(published, abs=1.5 * error + 0.005)


@pytest.mark.parametrize(
    ("n", "draws", "gdp", "plain"), [(1_000, 30, 2.83, 1.12), (10_000, 20, 3.95, 2.02), (1_000_000, 5, 4.34, 3.10)]
)
def test_the_clopper_pearson_bounds_are_the_published_figures(n, draws, gdp, plain):
    rng = np.random.default_rng(9)
    found = [gaussian_halves(1.0, n, rng) for _ in range(draws)]
    mus = [lower_bounds.gdp_clopper_pearson(halves, confidence=0.95) for halves in found]
    epsilons = [lower_bounds.clopper_pearson(halves, delta=DELTA, confidence=0.95) for halves in found]
    # Single draws have a std of at most 0.4 (measured; at every n, since the best threshold goes with n): three stds
    # of the mean.
    tolerance = 3 * 0.4 / math.sqrt(draws)
    assert np.mean([lower_bounds.epsilon_of_mu(mu, DELTA) for mu in mus]) == pytest.approx(gdp, abs=tolerance)
    assert np.mean(epsilons) == pytest.approx(plain, abs=tolerance)


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "delta", "published"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
)
def test_the_one_run_bound_is_the_papers_own_figure(canaries, guesses, right, delta, published):
    # arXiv 2305.08846, appendix D and section 7: the first rounded, the second cut off after three digits.
    found = one_run.one_run_epsilon(right, guesses, canaries=canaries, delta=delta, confidence=0.95)
    assert found == pytest.approx(published, abs=1e-3)


def test_epsilon_at_sigma_1_is_the_textbook_value():
    assert lower_bounds.epsilon_of_mu(1.0, DELTA) == pytest.approx(4.3772, abs=1e-4)
    assert lower_bounds.epsilon_of_mu(0.0, DELTA) == 0 == lower_bounds.epsilon_of_mu(-math.inf, DELTA)
    assert lower_bounds.epsilon_of_mu(math.inf, DELTA) == math.inf


@settings(deadline=None)
@given(mu=st.floats(0.05, 20), delta=st.floats(1e-12, 0.1))
def test_epsilon_of_mu_is_never_above_the_curve(mu, delta):
    epsilon = lower_bounds.epsilon_of_mu(mu, delta)
    if epsilon > 0:
        assert gaussian_log_delta(epsilon, mu) >= math.log(delta)


# Independent computations.


@pytest.mark.parametrize(("n", "m"), [(8, 8), (40, 25), (3000, 5000)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 1 - 1e-6])
def test_the_gaussian_bound_inverts_the_law_of_the_t_statistic(n, m, confidence):
    rng = np.random.default_rng(3)
    inside, outside = rng.normal(0.7, 1, n), rng.normal(0, 1, m)
    bound = lower_bounds.gaussian_mu(inside, outside, confidence=confidence)
    statistic = stats.ttest_ind(inside, outside).statistic
    # P(T <= t) as an integral over the chi-square law of the variance, without the noncentral t distribution.
    chi = stats.chi2(n + m - 2)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    low, high = chi.ppf(1e-17), chi.isf(1e-17)
    v = low + (high - low) * (nodes + 1) / 2
    inner = special.ndtr(statistic * np.sqrt(v / (n + m - 2)) - bound / math.sqrt(1 / n + 1 / m))
    assert (high - low) / 2 * np.sum(weights * chi.pdf(v) * inner) == pytest.approx(confidence, abs=1e-9)


def exact_p_value(e_to_epsilon, delta, canaries, guesses, right):
    """Theorem 5.2 in rational arithmetic."""
    rate = Fraction(e_to_epsilon) / (1 + Fraction(e_to_epsilon))
    masses = [math.comb(guesses, k) * rate**k * (1 - rate) ** (guesses - k) for k in range(guesses + 1)]

    def tail(v):
        return sum(masses[max(v, 0) :], Fraction(0))

    gains = [(tail(right - i) - tail(right)) / i for i in range(1, right + 1)]
    return float(min(Fraction(1), tail(right) + 2 * canaries * Fraction(delta) * max(gains, default=Fraction(0))))


@pytest.mark.parametrize("right", [0, 1, 20, 33, 40])
@pytest.mark.parametrize("e_to_epsilon", [1, 2, 20])
@pytest.mark.parametrize("delta", [0, "1/1000"])
def test_the_one_run_p_value_is_the_theorems_formula(right, e_to_epsilon, delta):
    found = one_run.one_run_p_value(
        math.log(e_to_epsilon), float(Fraction(delta)), canaries=60, guesses=40, right=right
    )
    assert found == pytest.approx(exact_p_value(e_to_epsilon, delta, 60, 40, right), rel=1e-9)


@pytest.mark.parametrize(("errors", "trials", "level"), [(0, 50, 0.025), (3, 1000, 0.01), (50, 50, 0.05)])
def test_the_upper_rate_is_the_exact_binomial_interval(errors, trials, level):
    found = lower_bounds.upper_rates(np.array([errors]), trials, level)[0]
    assert found == pytest.approx(stats.binomtest(errors, trials).proportion_ci(1 - 2 * level, "exact").high)


# Coverage. Every bound on a mechanism whose truth is known, thousands of audits each.

AUDITS = 600


def coverage_of_gaussian(truth, audits, *, seed, n=60, confidence=0.95):
    rng = np.random.default_rng(seed)
    bounds = [
        lower_bounds.gaussian_mu(rng.normal(truth, 1, n), rng.normal(0, 1, n), confidence=confidence)
        for _ in range(audits)
    ]
    return int(np.count_nonzero(np.array(bounds) > truth))


SLOW = pytest.mark.slow  # further points of what one or two points test by default


@pytest.mark.parametrize("truth", [pytest.param(0.0, marks=SLOW), 1.0, pytest.param(4.0, marks=SLOW)])
def test_B1_the_gaussian_bound_exceeds_the_truth_exactly_as_often_as_stated(truth):
    failures = coverage_of_gaussian(truth, AUDITS, seed=11)
    assert covers(failures, AUDITS, 0.05)
    assert stats.binom.cdf(failures, AUDITS, 0.05) > 1e-6  # the bound is exact: it must fail as often, too


def tight(epsilon, delta, inside, n, rng):
    """The worst (epsilon, delta)-private mechanism: every other one is a function of its output.

    Output 3 or 0 tells the truth with probability delta; otherwise randomised response, 2 for "in".
    """
    truth = rng.random(n) < delta
    lies = rng.random(n) < 1 / (1 + math.exp(epsilon))
    answer = np.where(lies, 1 if inside else 2, 2 if inside else 1)
    return np.where(truth, 3 if inside else 0, answer).astype(np.float64)


def worst_case_failures(epsilon, delta, audits, *, seed, n=200, bound=None):
    rng = np.random.default_rng(seed)
    bound = bound or (lambda halves: lower_bounds.clopper_pearson(halves, delta=delta, confidence=0.95))
    found = [
        bound(Halves.of(tight(epsilon, delta, True, n, rng), tight(epsilon, delta, False, n, rng)))
        for _ in range(audits)
    ]
    return int(np.count_nonzero(np.array(found) > epsilon))


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0.0, 0.0), pytest.param(0.0, 0.05, marks=SLOW), pytest.param(1.0, 0.0, marks=SLOW), (2.0, 0.01), (4.0, 0.0)],
)
def test_B2_clopper_pearson_holds_on_the_worst_mechanism(epsilon, delta):
    assert covers(worst_case_failures(epsilon, delta, 600, seed=12), 600, 0.05)


@pytest.mark.parametrize("mu", [pytest.param(0.0, marks=SLOW), 1.0])
def test_B2_B3_the_split_bounds_hold_on_a_gaussian_mechanism(mu):
    rng = np.random.default_rng(13)
    epsilon = lower_bounds.epsilon_of_mu(mu, 0.1)
    above = {"gdp": 0, "plain": 0}
    for _ in range(400):
        halves = gaussian_halves(mu, 200, rng)
        above["gdp"] += lower_bounds.gdp_clopper_pearson(halves, confidence=0.95) > mu
        above["plain"] += lower_bounds.clopper_pearson(halves, delta=0.1, confidence=0.95) > epsilon
    assert all(covers(failures, 400, 0.05) for failures in above.values()), above


def reused(halves):
    """The same scores choose the threshold and are counted: what the split is there to prevent."""
    inside = np.concatenate([halves.choose_in, halves.count_in])
    outside = np.concatenate([halves.choose_out, halves.count_out])
    return Halves(inside, outside, inside, outside)


def test_fault_a_threshold_chosen_on_the_counted_scores_is_caught_by_the_coverage_test():
    def failures(arrange):
        rng = np.random.default_rng(14)
        found = [
            lower_bounds.gdp_clopper_pearson(arrange(gaussian_halves(0.0, 100, rng)), confidence=0.6)
            for _ in range(400)
        ]
        return int(np.count_nonzero(np.array(found) > 0))

    assert covers(failures(lambda halves: halves), 400, 0.4)
    assert not covers(failures(reused), 400, 0.4)


def test_fault_error_rates_taken_as_seen_are_caught_by_the_coverage_test():
    def naive(halves):
        false_positive = np.mean(halves.count_out >= 2)
        return math.log(max(np.mean(halves.count_in >= 2), 1e-9) / max(false_positive, 1e-9))

    assert not covers(worst_case_failures(1.0, 0.0, 600, seed=12, bound=naive), 600, 0.05)


def one_run_failures(answers, epsilon, delta, audits, *, canaries, guesses, seed, used_delta=None):
    """Audits of a mechanism `answers(included, rng) -> scores` whose bound is above epsilon."""
    rng = np.random.default_rng(seed)
    failures = 0
    for _ in range(audits):
        included = rng.random(canaries) < 0.5
        found = one_run.one_run(
            answers(included, rng),
            included,
            guesses,
            delta=delta if used_delta is None else used_delta,
            confidence=0.95,
        )
        failures += found > epsilon
    return failures


def randomised_response(epsilon):
    def answers(included, rng):
        lies = rng.random(included.size) < 1 / (1 + math.exp(epsilon))
        return (included ^ lies) + rng.random(included.size) / 2  # ties at random

    return answers


@pytest.mark.parametrize(("epsilon", "guesses"), [(0.0, 100), (1.0, 100), (1.0, 40), (3.0, 100)])
def test_B4_one_run_holds_on_randomised_response(epsilon, guesses):
    failures = one_run_failures(
        randomised_response(epsilon), epsilon, 0.0, 1000, canaries=100, guesses=guesses, seed=15
    )
    assert covers(failures, 1000, 0.05)


def tells_all(probability):
    """(0, probability)-private: now and then every coin is published, and otherwise nothing at all."""

    def answers(included, rng):
        told = rng.random() < probability
        return included + rng.random(included.size) / 2 if told else rng.random(included.size)

    return answers


def test_B4_one_run_holds_when_all_coins_are_published_together():
    settings_of = {"canaries": 60, "guesses": 40, "seed": 16}
    assert covers(one_run_failures(tells_all(0.2), 0.0, 0.2, 1000, **settings_of), 1000, 0.05)
    # The test has teeth: without the delta of the theorem the same scores certify one run in five.
    without = one_run_failures(tells_all(0.2), 0.0, 0.2, 1000, used_delta=0.0, **settings_of)
    assert not covers(without, 1000, 0.05)


def test_B4_one_run_needs_no_independence():
    # One sign for all canaries: guesses are right or wrong together, and no better than chance.
    def answers(included, rng):
        flipped = rng.random() < 0.5
        return (included[0] ^ flipped) * 1.0 + rng.random(included.size)

    assert covers(one_run_failures(answers, 0.0, 0.0, 1000, canaries=60, guesses=40, seed=17), 1000, 0.05)


def test_B4_trying_several_numbers_of_guesses_costs_no_coverage():
    rng = np.random.default_rng(18)
    failures = 0
    for _ in range(300):
        included = rng.random(256) < 0.5
        scores = randomised_response(0.5)(included, rng)
        failures += one_run.one_run_best(scores, included, delta=0.0, confidence=0.95)[0] > 0.5
    assert covers(failures, 300, 0.05)


LENGTH = 4000


def report(what, failures, audits=LENGTH):
    print(f"{what}: above the truth in {100 * failures / audits:.2f} % of {audits}")
    return covers(failures, audits, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 1000])
@pytest.mark.parametrize("truth", [0.0, 1.0, 3.0])
def test_B1_coverage_at_length(truth, n):
    failures = coverage_of_gaussian(truth, 10_000, seed=21, n=n)
    assert report(f"gaussian, mu {truth}, {n} + {n} scores", failures, 10_000)
    assert stats.binom.cdf(failures, 10_000, 0.05) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 2000])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (0.0, 0.1), (0.5, 0.0), (1.0, 0.05), (3.0, 0.0)])
def test_B2_coverage_at_length(epsilon, delta, n):
    failures = worst_case_failures(epsilon, delta, LENGTH, seed=22, n=n)
    assert report(f"clopper-pearson, epsilon {epsilon}, delta {delta}, {n} + {n} scores", failures)


@pytest.mark.slow
@pytest.mark.parametrize("mu", [0.0, 0.5, 1.0, 3.0])
def test_B3_coverage_at_length(mu):
    rng = np.random.default_rng(23)
    bounds = [lower_bounds.gdp_clopper_pearson(gaussian_halves(mu, 500, rng), confidence=0.95) for _ in range(LENGTH)]
    assert report(f"gdp-clopper-pearson, mu {mu}, 500 + 500 scores", int(np.count_nonzero(np.array(bounds) > mu)))


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "guesses"), [(0.0, 200), (0.5, 200), (1.0, 60), (3.0, 200)])
def test_B4_coverage_at_length(epsilon, guesses):
    failures = one_run_failures(
        randomised_response(epsilon), epsilon, 0.0, 10_000, canaries=200, guesses=guesses, seed=24
    )
    assert report(f"one-run, epsilon {epsilon}, {guesses} guesses among 200 canaries", failures, 10_000)


# Properties.


@st.composite
def score_groups(draw):
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    n, m = draw(st.integers(16, 200)), draw(st.integers(16, 200))
    return rng.normal(draw(st.floats(-3, 3)), draw(st.floats(0.1, 3)), n), rng.normal(0, 1, m)


@settings(max_examples=25, deadline=None)
@given(groups=score_groups())
def test_more_confidence_never_gives_a_larger_bound(groups):
    inside, outside = groups
    mus = [lower_bounds.gaussian_mu(inside, outside, confidence=c) for c in (0.5, 0.9, 0.999)]
    assert mus == sorted(mus, reverse=True)
    scores = np.concatenate(groups)
    included = np.arange(scores.size) < inside.size
    runs = [one_run.one_run(scores, included, 16, delta=DELTA, confidence=c) for c in (0.5, 0.9, 0.999)]
    assert runs == sorted(runs, reverse=True)


@settings(max_examples=25, deadline=None)
@given(groups=score_groups())
def test_threshold_bounds_do_not_depend_on_the_unit_of_the_scores_nor_on_which_side_is_in(groups):
    halves = Halves.of(*groups)
    bound = lower_bounds.clopper_pearson(halves, delta=DELTA, confidence=0.9)
    stretched = Halves.of(*(4 * group for group in groups))  # a power of two: no rounding moves a threshold
    assert lower_bounds.clopper_pearson(stretched, delta=DELTA, confidence=0.9) == bound
    exchanged = Halves(halves.choose_out, halves.choose_in, halves.count_out, halves.count_in)
    other = lower_bounds.clopper_pearson(exchanged, delta=DELTA, confidence=0.9)
    assert (other > 0) == (bound > 0) or abs(other - bound) < 1.0  # ties in the choice may fall differently


@settings(max_examples=25, deadline=None)
@given(
    guesses=st.integers(1, 100),
    right=st.floats(0, 1),
    delta=st.sampled_from([0.0, 1e-6, 1e-3]),
    more=st.integers(0, 400),
)
def test_the_one_run_p_value_rises_with_epsilon_up_to_the_level(guesses, right, delta, more):
    # The bound stops at the first epsilon whose p-value is too large; were a later one small again, it would not count.
    values = [
        one_run.one_run_p_value(e, delta, canaries=guesses + more, guesses=guesses, right=round(right * guesses))
        for e in np.linspace(0, 6, 25)
    ]
    assert all(0 <= value <= 1 for value in values)
    bound = one_run.one_run_epsilon(
        round(right * guesses), guesses, canaries=guesses + more, delta=delta, confidence=0.95
    )
    assert all(value <= 0.05 for value, e in zip(values, np.linspace(0, 6, 25), strict=True) if e < bound)


def test_scores_that_separate_give_the_largest_bound_that_counting_can_give():
    rng = np.random.default_rng(19)
    halves = Halves.of(rng.random(1000) + 5000, rng.random(1000))
    bound = lower_bounds.clopper_pearson(halves, delta=DELTA, confidence=0.95)
    assert bound == pytest.approx(lower_bounds.largest_epsilon(500, delta=DELTA, confidence=0.95), rel=1e-12)
    # With no error in 500, the rate is below 1 - 0.025^(1/500) = 0.00735.
    assert bound == pytest.approx(math.log((1 - DELTA - 0.0073507) / 0.0073507), abs=1e-4)
    assert lower_bounds.largest_epsilon(0, delta=DELTA, confidence=0.95) == 0


def test_scores_that_never_vary_bound_nothing_or_everything():
    same = np.ones(20)
    assert lower_bounds.gaussian_mu(same, same, confidence=0.95) == 0
    assert lower_bounds.gaussian_mu(same + 1, same, confidence=0.95) == math.inf
    assert lower_bounds.clopper_pearson(Halves.of(same, same), delta=0.0, confidence=0.95) == 0


# Refusals.


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: lower_bounds.gaussian_mu(np.zeros(7), np.zeros(9), confidence=0.95), "at least 8 scores"),
        (lambda: lower_bounds.gaussian_mu(np.zeros(9), np.full(9, math.inf), confidence=0.95), "finite numbers"),
        (lambda: lower_bounds.gaussian_mu(np.zeros(9), np.zeros(9), confidence=1.0), "confidence must be"),
        (lambda: Halves.of(np.full(20, math.nan), np.zeros(20)), "hold numbers only"),
        (
            lambda: lower_bounds.clopper_pearson(
                gaussian_halves(1.0, 40, np.random.default_rng(1)), delta=1.0, confidence=0.9
            ),
            "delta must be",
        ),
        (
            lambda: one_run.one_run(np.zeros(9), np.zeros(9, dtype=bool), 3, delta=0.0, confidence=0.9),
            "even number of guesses",
        ),
        (lambda: lower_bounds.epsilon_of_mu(1.0, -0.1), "delta must be"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(InputError, match=said):
        call()
