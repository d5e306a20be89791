"""The tests of law are themselves tested: they hold on true draws at the stated rate, and see what they say they see.

Rates: with R replicates of an event of probability p, the count exceeds stats.binom.isf(1e-6, R, p) with probability
<= 1e-6; the seeds are literal, so each test here either passes always or never.
"""

import math

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from samelaw.contract.errors import InputError
from samelaw.contract.evidence import Verdict
from samelaw.equivalence import laws

# Of 600 replicates at 0.05, a rate wrong by three quarters is seen; the far tail, where the budget is spent, has tests
# of its own below (exact p-values, closed forms, importance sampling).
REPLICATES = 600
FALSE_ALARM = 0.05
FALSE_PASS = 0.05

# name -> test at the rates above, on a vector of samples
TESTS = {
    "scale": lambda z: laws.scale(z, margin=0.1, false_alarm=FALSE_ALARM, false_pass=FALSE_PASS),
    "mean": lambda z: laws.mean(z, false_alarm=FALSE_ALARM, false_pass=FALSE_PASS),
    "ks": lambda z: laws.kolmogorov_smirnov(z, false_alarm=FALSE_ALARM, false_pass=FALSE_PASS),
    "ad": lambda z: laws.anderson_darling(z, false_alarm=FALSE_ALARM, false_pass=FALSE_PASS),
    "tail": lambda z: laws.tail_count(z, 2.0, false_alarm=FALSE_ALARM, false_pass=FALSE_PASS),
    "largest": lambda z: laws.largest(z, false_alarm=FALSE_ALARM),
    "correlation": lambda z: laws.correlation(
        z[: z.size // 2], z[z.size // 2 :], false_alarm=FALSE_ALARM, false_pass=FALSE_PASS
    ),
}
DIRECTION = np.random.default_rng(10).exponential(size=4000)
TESTS["projection"] = lambda z: laws.projection(z, DIRECTION[: z.size], false_alarm=FALSE_ALARM, false_pass=FALSE_PASS)
CONSERVATIVE = {"ks", "tail"}  # Massart's bound, and a discrete statistic: at most the stated rate, not exactly


def rejections(test, replicates, draw):
    return sum(test(draw()).verdict is Verdict.REFUTED for _ in range(replicates))


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("n", [128, 2000])
def test_true_draws_are_rejected_at_the_stated_rate(name, n):
    rng = np.random.default_rng(11)
    rejected = rejections(TESTS[name], REPLICATES, lambda: rng.standard_normal(n))
    assert rejected <= stats.binom.isf(1e-6, REPLICATES, FALSE_ALARM)
    if name not in CONSERVATIVE:
        assert rejected >= stats.binom.ppf(1e-6, REPLICATES, FALSE_ALARM)
        assert rejected > 0


def plant(name, detectable, rng, n):
    """Samples with a gap of exactly the size that the test says it detects."""
    z = rng.standard_normal(n)
    match name:
        case "scale" | "ad":
            return z * (1 + detectable)
        case "mean":
            return z + detectable
        case "projection":
            return z + detectable * DIRECTION[:n]
        case "tail":  # move mass from the body into the tail: P(|z| > 2) grows by the factor
            rate = 2 * stats.norm.sf(2.0)
            extra = rng.random(n) < rate * (detectable - 1) / (1 - rate)
            return np.where(extra & (np.abs(z) <= 2), 2.5, z)
        case "largest":
            return stats.norm.ppf(
                stats.norm.cdf(-detectable) + rng.random(n) * (stats.norm.cdf(detectable) - stats.norm.cdf(-detectable))
            )
        case "correlation":
            half = n // 2
            z[half:] = detectable * z[:half] + math.sqrt(1 - detectable**2) * z[half:]
            return z
        case "ks":  # a mixture whose distribution function is `detectable` away at 0
            return np.where(rng.random(n) < 2 * detectable, np.abs(z), z)
    raise AssertionError(name)


@pytest.mark.parametrize("name", TESTS)
def test_a_gap_of_the_detectable_size_is_rejected_with_the_stated_power(name):
    n, replicates = 2000, 300
    rng = np.random.default_rng(12)
    detectable = TESTS[name](rng.standard_normal(n)).detectable
    assert detectable is not None
    rejected = rejections(TESTS[name], replicates, lambda: plant(name, detectable, rng, n))
    power = 1.0 if name == "largest" else 1 - FALSE_PASS
    assert rejected >= stats.binom.ppf(1e-6, replicates, power)


@pytest.mark.parametrize("name", ["scale", "ad", "mean", "correlation", "projection"])
def test_half_the_detectable_gap_is_often_missed(name):
    """The detectable gap is not padded: half of it escapes at least half of the time."""
    n, replicates = 2000, 150
    rng = np.random.default_rng(13)
    detectable = TESTS[name](rng.standard_normal(n)).detectable
    rejected = rejections(TESTS[name], replicates, lambda: plant(name, detectable / 2, rng, n))
    assert rejected <= replicates / 2


@pytest.mark.parametrize("factor", [0.97, 1.03, math.sqrt(3 / 4), 0.0, 2.0])
def test_a_wrong_scale_is_rejected_at_the_working_error_rates(factor):
    z = factor * np.random.default_rng(14).standard_normal(200_000)
    result = laws.scale(z, margin=0.02)
    assert result.verdict is Verdict.REFUTED
    assert result.detectable < 0.02  # an off-by-one at 4 owed steps is a 0.13 gap, at 40 it is 0.012
    assert laws.anderson_darling(z).verdict is Verdict.REFUTED


def test_equivalence_is_concluded_only_with_enough_samples():
    rng = np.random.default_rng(15)
    assert laws.scale(rng.standard_normal(1_000), margin=0.02).verdict is Verdict.NOT_REFUTED
    assert laws.scale(rng.standard_normal(300_000), margin=0.02).verdict is Verdict.EQUIVALENT


@pytest.mark.parametrize("sign", [-1, 1])
def test_equivalence_at_the_margin_itself_is_concluded_no_more_often_than_stated(sign):
    margin, n, replicates = 0.1, 1000, 2000
    rng = np.random.default_rng(16)
    concluded = sum(
        laws.scale(
            math.exp(sign * margin) * rng.standard_normal(n),
            margin=margin,
            false_alarm=1e-9,  # so that the chi-square test does not refute first
            false_pass=FALSE_PASS,
        ).verdict
        is Verdict.EQUIVALENT
        for _ in range(replicates)
    )
    assert stats.binom.ppf(1e-6, replicates, FALSE_PASS) <= concluded <= stats.binom.isf(1e-6, replicates, FALSE_PASS)


def test_the_anderson_darling_tail_is_covered_by_its_closed_form():
    """P(A^2 > x) by inversion of the characteristic function (Imhof), against 1.1 sqrt(3) erfc(sqrt(x))."""
    lam = 1 / np.array([j * (j + 1.0) for j in range(1, 2001)])

    def tail(x):
        def integrand(u):
            angle = 0.5 * np.sum(np.arctan(lam * u)) - 0.5 * x * u
            return np.sin(angle) / (u * np.exp(0.25 * np.sum(np.log1p((lam * u) ** 2))))

        return 0.5 + integrate.quad(integrand, 0, 400, limit=2000, epsabs=1e-12)[0] / math.pi

    for x in (3.8, 5.0, 7.0):
        exact, closed = tail(x), 1.1 * math.sqrt(3) * math.erfc(math.sqrt(x))
        assert exact <= closed <= 1.12 * exact
        assert laws.anderson_darling_tail(x) == pytest.approx(closed, rel=0.02)
    # Below, the series; 2,000 of the weights leave out 0.0005 of the mean, which moves the tail by less than 0.0006.
    for x in (0.2, 0.5, 1.0, 2.0, 3.5):
        assert laws.anderson_darling_tail(x) == pytest.approx(tail(x), abs=6e-4)
    grid = [laws.anderson_darling_tail(x) for x in np.linspace(0.01, 8, 1000)]
    assert np.all(np.diff(grid) <= 0)


@pytest.mark.parametrize(("n", "p_value"), [(100, 1e-6), (100, 1e-12), (200, 1e-9)])
def test_the_anderson_darling_tail_holds_for_few_samples_where_the_budget_is_spent(n, p_value):
    """P(A^2 > x) for n samples at x far out, by importance sampling, against the limiting law's bound.

    The uniforms are tilted to density theta / (2 sinh theta) exp(+-theta (2 u - 1)), either sign half of the time: the
    shape of the law's first component, whose A^2 is the likeliest large one.
    """
    x = optimize.brentq(lambda a: math.log(laws.anderson_darling_tail(a) / p_value), 4.0, 60.0)
    # Its mean of 2 u - 1 is coth theta - 1 / theta; 3 n mean^2 / 2 is the first component's part of A^2.
    mean = math.sqrt(2 * x / (3 * n))
    theta = optimize.brentq(lambda t: 1 / math.tanh(t) - 1 / t - mean, 0.01, 20.0)
    rng = np.random.default_rng(27)
    draws = np.log1p(rng.random((20_000, n)) * math.expm1(2 * theta)) / (2 * theta)
    u = np.sort(np.where(rng.random((20_000, 1)) < 0.5, draws, 1 - draws), axis=1)
    statistic = -n - (np.log(u) + np.log1p(-u[:, ::-1])) @ (2 * np.arange(n) + 1.0) / n
    tilted = np.logaddexp(theta * (2 * u - 1).sum(1), -theta * (2 * u - 1).sum(1)) - math.log(2)
    weights = np.where(statistic > x, np.exp(n * math.log(math.sinh(theta) / theta) - tilted), 0.0)
    found, error = weights.mean(), weights.std() / math.sqrt(len(weights))
    assert error < 0.05 * p_value
    assert 0.8 * p_value < found < p_value + 3 * error


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_samples_that_are_not_finite_never_pass(name, bad):
    z = np.random.default_rng(17).standard_normal(4000)
    z[123] = bad
    with np.errstate(invalid="ignore"):
        assert TESTS[name](z).verdict is Verdict.REFUTED


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("false_alarm", [0.3, 0.01, 1e-4, 1e-9])
def test_the_p_value_and_the_verdict_say_the_same(name, false_alarm, monkeypatch):
    """Refuted exactly where p <= false_alarm, on samples with gaps of all sizes."""
    monkeypatch.setitem(globals(), "FALSE_ALARM", false_alarm)
    rng = np.random.default_rng(23)
    for gap in np.linspace(-0.2, 0.2, 21):
        result = TESTS[name]((1 + gap) * rng.standard_normal(1000) + gap / 2)
        assert (result.verdict is Verdict.REFUTED) == (result.p_value <= false_alarm), (gap, result)


@pytest.mark.parametrize("rate", [0.0, -0.1, 0.51, 1.0, math.nan, math.inf])
@pytest.mark.parametrize("which", ["false_alarm", "false_pass"])
def test_a_rate_that_is_none_is_refused_by_name_and_place(which, rate):
    z = np.zeros(200)
    rows = np.zeros((4, 8), dtype=np.float32)
    for call in (
        lambda **o: laws.scale(z, margin=0.1, **o),
        lambda **o: laws.mean(z, **o),
        lambda **o: laws.kolmogorov_smirnov(z, **o),
        lambda **o: laws.anderson_darling(z, **o),
        lambda **o: laws.tail_count(z, 2.0, **o),
        lambda **o: laws.largest(z, **o),
        lambda **o: laws.correlation(z, z, **o),
        lambda **o: laws.projection(z, z + 1, **o),
        lambda **o: laws.duplicates(rows.astype(np.float64), **o),
        lambda **o: laws.unchanged(rows, rows, np.ones(4), **o),
    ):
        with pytest.raises(InputError, match=rf"{which} must be in \(0, 0.5\], got .* in the test 'the place'"):
            call(name="the place", **{which: rate})


@pytest.mark.parametrize("margin", [0.0, -0.01, math.nan, math.inf])
def test_a_margin_that_is_none_is_refused_by_name_and_place(margin):
    with pytest.raises(InputError, match=r"margin must be finite and > 0, got .* in the test 'scale'"):
        laws.scale(np.zeros(10), margin=margin)


def test_pairs_that_do_not_pair_up_are_refused():
    with pytest.raises(InputError, match="same number of values, got 40 and 41"):
        laws.correlation(np.zeros(40), np.zeros(41))
    with pytest.raises(InputError, match="one shape"):
        laws.unchanged(np.zeros((3, 2)), np.zeros((4, 2)), np.ones(3))
    with pytest.raises(InputError, match="within must be >= 0"):
        laws.duplicates(np.zeros((3, 2)), within=-1.0)
    with pytest.raises(InputError, match="beyond must be > 0"):
        laws.tail_count(np.zeros(10), 0.0)


def test_a_row_that_kept_every_bit_is_found_unless_rounding_could_explain_it():
    rng = np.random.default_rng(24)
    before = rng.standard_normal((5000, 8)).astype(np.float32)
    std = np.full(5000, 1e-3)
    after = before - (1e-3 * rng.standard_normal((5000, 8))).astype(np.float32)
    assert laws.unchanged(before, after, std).verdict is Verdict.NOT_REFUTED
    after[4321] = before[4321]
    found = laws.unchanged(before, after, std)
    assert found.verdict is Verdict.REFUTED
    assert found.p_value < 1e-20
    assert laws.unchanged(before, after, np.full(5000, 1e-8)).verdict is Verdict.NOT_ASSESSED
    after[4321, 3] = np.nextafter(before[4321, 3], np.float32(10))
    assert laws.unchanged(before, after, std).verdict is Verdict.NOT_REFUTED


@pytest.mark.parametrize("name", TESTS)
def test_no_samples_is_not_a_pass(name):
    assert TESTS[name](np.empty(0)).verdict is Verdict.NOT_ASSESSED


def test_repeated_rows_are_found_to_the_bit_and_to_a_tolerance():
    rng = np.random.default_rng(18)
    rows = rng.standard_normal((50_000, 8))
    assert laws.duplicates(rows).verdict is Verdict.NOT_REFUTED
    assert laws.duplicates(rows, within=1e-4).verdict is Verdict.NOT_REFUTED
    rows[40_000] = rows[17]
    assert laws.duplicates(rows).verdict is Verdict.REFUTED
    rows[40_000] += 5e-5 * rng.uniform(-1, 1, 8)
    assert laws.duplicates(rows).verdict is Verdict.NOT_REFUTED
    assert laws.duplicates(rows, within=1e-4).verdict is Verdict.REFUTED


def test_duplicates_of_short_rows_are_not_assessed():
    """Two single float32 normals coincide by chance: only vectors tell a copy."""
    rows = np.random.default_rng(19).standard_normal((50_000, 1))
    assert laws.duplicates(rows).verdict is Verdict.NOT_ASSESSED
    assert laws.duplicates(rows, within=1e-4).verdict is Verdict.NOT_ASSESSED


def test_many_copies_of_one_row_do_not_take_quadratic_time():
    rng = np.random.default_rng(20)
    rows = rng.standard_normal((100_000, 8))
    rows[:90_000] = rows[0]
    assert laws.duplicates(rows, within=1e-4).statistic == 90_000
    assert laws.duplicates(rows).statistic == 89_999
    rows[:90_000] += 4e-5 * rng.uniform(-1, 1, (90_000, 8))
    assert laws.duplicates(rows, within=1e-4).statistic == 90_000


def test_close_pairs_are_found_with_the_stated_power():
    rng = np.random.default_rng(22)
    rows = rng.standard_normal((20_000, 16))
    rows[10_000:] = rows[:10_000] + 1e-4 * rng.choice([-1, 1], (10_000, 16)) * (1 - 1e-9)
    missed = 20_000 - laws.duplicates(rows, within=1e-4).statistic
    assert missed / 2 <= stats.binom.isf(1e-6, 10_000, 0.001)


def test_unchanged_rows_are_those_whose_every_bit_is_the_same():
    before = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], dtype=np.float32)
    after = np.array([[-0.0, 1.0], [2.0, 3.0], [4.0, 6.0]], dtype=np.float32)
    assert laws.unchanged_rows(before, after).tolist() == [False, True, False]


def test_power_agrees_with_the_stated_facts():
    """Sample sizes at false alarm 1e-6 and power .99, from an independent table (two digits)."""
    rates = {"false_alarm": 1e-6, "false_pass": 0.01}
    assert laws.scale(np.ones(260_000), margin=1.0, **rates).detectable == pytest.approx(0.01, rel=0.02)
    assert laws.scale(np.ones(9_900), margin=1.0, **rates).detectable == pytest.approx(0.05, rel=0.05)
    assert laws.anderson_darling(np.ones(700_000), **rates).detectable == pytest.approx(0.01, rel=0.05)
    assert laws.mean(np.zeros(520_000), **rates).detectable == pytest.approx(0.01, rel=0.02)
    z = np.random.default_rng(21).standard_normal(520_000)
    assert laws.correlation(z, z, **rates).detectable == pytest.approx(0.01, rel=0.02)


def test_few_samples_that_are_not_finite_are_refuted_too():
    """Too few to assess, or too short to tell a copy from chance: still no trainer's noise."""
    z = np.random.default_rng(25).standard_normal(20)
    assert TESTS["correlation"](z).verdict is TESTS["ad"](z).verdict is Verdict.NOT_ASSESSED
    assert laws.duplicates(z[:, None], within=1e-4).verdict is Verdict.NOT_ASSESSED
    z[3] = math.nan
    before, std = np.ones((20, 1), dtype=np.float32), np.full(20, 1e-8)
    assert laws.unchanged(before, before + np.float32(1), std).verdict is Verdict.NOT_ASSESSED
    for found in (
        TESTS["correlation"](z),
        TESTS["ad"](z),
        laws.duplicates(z[:, None], within=1e-4),
        laws.duplicates(z[:1, None] * math.inf),
        laws.projection(np.ones(20), z),
        laws.unchanged(before, before + z[:, None].astype(np.float32), std),
        laws.unchanged(before + z[:, None].astype(np.float32), before, np.ones(20)),
    ):
        assert found.verdict is Verdict.REFUTED, found.name
        assert found.p_value == 0
        assert found.note == "some samples are not finite"


def test_noise_that_blew_up_is_searched_for_copies_all_the_same():
    rows = np.random.default_rng(26).standard_normal((50, 8))
    rows[3] *= 1e30
    assert laws.duplicates(rows, within=1e-4).verdict is Verdict.NOT_REFUTED
    rows[40] = rows[3]
    assert laws.duplicates(rows, within=1e-4).verdict is Verdict.REFUTED
