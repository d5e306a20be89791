"""Every assumption has a price of its own, or is refused; and each pair really dominates what it stands for."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from samelaw.accounting import generator
from samelaw.accounting.assumptions import (
    Adjacency,
    Assumptions,
    Released,
    Sampler,
    combined_multiplier,
    gaussian_dp,
    shuffled_lower_bound,
)
from samelaw.accounting.closed_forms import gaussian_log_delta, solve_epsilon
from samelaw.accounting.composition import Plan, Spend, price_plan, together
from samelaw.accounting.contour import Composition
from samelaw.accounting.engines import evaluate
from samelaw.accounting.generator import CUT, TAIL, Coordinates, Drawn, cut_tail, hole
from samelaw.accounting.interval import Unavailable
from samelaw.accounting.mechanism import SampledGaussian
from samelaw.accounting.pairs import MixturePair, Pair, fixed_size, poisson_add_remove, poisson_replace_one
from samelaw.accounting.solving import least_multiplier, most_steps
from samelaw.contract.errors import InputError, PrivacyError

USUAL = SampledGaussian(0.01, 1.0, 1000)
DELTA = 1e-5


def epsilon(
    mechanism: SampledGaussian = USUAL, *, delta: float = DELTA, spends: tuple[Spend, ...] = (), **assumed: Any
) -> Any:
    return price_plan(Plan((mechanism,), Assumptions(**assumed), spends), delta)


# -------------------------------------------------------------------------------------------------------- known values

KNOWN: list[tuple[str, dict[str, Any], float, float]] = [  # measured before by other code, and its last digit
    ("one example", {}, 1.828, 5e-4),
    ("two examples a person", {"examples_per_unit": 2}, 3.979, 5e-4),
    ("five examples a person", {"examples_per_unit": 5}, 11.64, 5e-3),
    ("replace one", {"adjacency": Adjacency.REPLACE_ONE}, 2.843, 5e-4),
]


@pytest.mark.parametrize(("name", "assumed", "truth", "digit"), KNOWN, ids=[k[0] for k in KNOWN])
def test_the_price_of_an_assumption_is_the_known_one(name: str, assumed: dict[str, Any], truth: float, digit: float):
    found = epsilon(**assumed)
    assert found.lower <= truth + digit
    assert found.upper >= truth - digit
    assert found.upper - found.lower < 1e-6


def test_zero_out_costs_what_add_remove_costs_under_poisson_sampling():
    assert epsilon(adjacency=Adjacency.ZERO_OUT) == epsilon()


def test_the_final_model_costs_what_every_iterate_costs_and_the_words_say_so():
    assert epsilon(released=Released.FINAL_MODEL) == epsilon()
    assert any("no amplification by iteration" in w for w in Assumptions(released=Released.FINAL_MODEL).words())


def test_two_releases_from_one_sample_are_one_release_with_less_noise():
    """AdaFEST: the contribution map and the gradient come from the same batch. Two separate samples would say 2.6."""
    sigma = combined_multiplier(1.0, 1.0)
    assert sigma == pytest.approx(2**-0.5)
    assert sigma < 2**-0.5 * (1 + 1e-15)
    right = epsilon(SampledGaussian(0.01, sigma, 1000))
    apart = epsilon(SampledGaussian(0.01, 1.0, 2000))
    assert right.lower > 4.45
    assert apart.upper < 2.64
    for bad in ((), (0.0,), (1.0, -1.0), (math.nan,)):
        with pytest.raises(InputError, match="multipliers"):
            combined_multiplier(*bad)


# ------------------------------------------------------------------------------------------------- pairs that dominate


def hockey_stick(first: np.ndarray, second: np.ndarray, alpha: float, cell: float) -> float:
    return float(np.maximum(0.0, first - alpha * second).sum() * cell)


def pair_profile(pair: Pair, alpha: float, x: np.ndarray) -> float:
    """sup over events of P - alpha Q, by the trapezoid rule."""
    assert isinstance(pair, MixturePair)
    p, q = (
        sum(w * stats.norm.pdf(x, m, pair.sigma) for w, m in zip(mix.weights, mix.means, strict=True))
        for mix in (pair.upper, pair.lower)
    )
    cell = float(x[1] - x[0])
    if pair.symmetric and alpha < 1:
        return 1 - alpha + alpha * hockey_stick(p, q, 1 / alpha, cell)
    return hockey_stick(p, q, alpha, cell)


LINE = np.linspace(-14, 14, 20_001)
KINK = 1e-6
"""The trapezoid rule's error at a kink: an eighth of the cell squared times the change of slope, at most 4 here."""


@pytest.mark.parametrize("seed", range(6))
def test_replacing_an_example_in_the_plane_is_dominated_by_the_line(seed: int):
    """u and v anywhere in the unit disc: (1-q) N(0) + q N(u) against (1-q) N(0) + q N(v), on a grid of the plane."""
    rng = np.random.default_rng(seed)
    q, sigma = float(rng.uniform(0.05, 0.9)), float(rng.uniform(0.5, 2.0))
    u, v = (w / max(1.0, float(np.linalg.norm(w))) for w in rng.normal(size=(2, 2)))
    pair = poisson_replace_one(q, sigma)[0]
    axis = np.linspace(-1 - 8 * sigma, 1 + 8 * sigma, 321)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    cell = float(axis[1] - axis[0]) ** 2

    def normal(mean: np.ndarray) -> np.ndarray:
        return np.exp(-((grid - mean) ** 2).sum(axis=-1) / (2 * sigma**2)) / (2 * math.pi * sigma**2)

    absent = normal(np.zeros(2))
    first, second = (1 - q) * absent + q * normal(u), (1 - q) * absent + q * normal(v)
    for alpha in (0.3, 0.9, 1.0, 1.3, 3.0):
        assert hockey_stick(first, second, alpha, cell) <= pair_profile(pair, alpha, LINE) + 1e-9


def subsets_law(values: list[float], size: int, sigma: float, x: np.ndarray) -> np.ndarray:
    """The density of a uniform subset's sum plus noise."""
    sums = [sum(chosen) for chosen in itertools.combinations(values, size)]
    return sum(stats.norm.pdf(x, s, sigma) for s in sums) / len(sums)


@pytest.mark.parametrize("others", [[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [-1.0, 1.0, 0.3], [0.0, 0.0, -1.0]])
@pytest.mark.parametrize("sigma", [0.7, 1.5])
def test_batches_of_fixed_size_are_dominated_by_their_pair(others: list[float], sigma: float):
    size = 2
    rate = size / (len(others) + 1)
    symmetric = fixed_size(rate, sigma, symmetric=True)[0]
    removal, addition = fixed_size(rate, sigma, symmetric=False)
    with_it = subsets_law([*others, 1.0], size, sigma, LINE)
    other_record = subsets_law([*others, -1.0], size, sigma, LINE)
    zeroed = subsets_law([*others, 0.0], size, sigma, LINE)
    without = subsets_law(others, size, sigma, LINE)
    cell = float(LINE[1] - LINE[0])
    for alpha in (0.4, 0.8, 1.0, 1.5, 4.0):
        for neighbour in (other_record, zeroed):
            bound = pair_profile(symmetric, alpha, LINE) + KINK
            assert hockey_stick(with_it, neighbour, alpha, cell) <= bound
            assert hockey_stick(neighbour, with_it, alpha, cell) <= bound
        assert hockey_stick(with_it, without, alpha, cell) <= pair_profile(removal, alpha, LINE) + KINK
        assert hockey_stick(without, with_it, alpha, cell) <= pair_profile(addition, alpha, LINE) + KINK


@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_a_group_in_the_plane_is_dominated_by_a_group_on_the_line(sigma: float):
    """Three examples of one person pulling in three directions."""
    q, rng = 0.3, np.random.default_rng(11)
    gradients = rng.normal(size=(3, 2))
    gradients /= np.maximum(1.0, np.linalg.norm(gradients, axis=1, keepdims=True))
    axis = np.linspace(-3 - 7 * sigma, 3 + 7 * sigma, 321)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    cell = float(axis[1] - axis[0]) ** 2
    present = np.zeros(grid.shape[:2])
    for drawn in itertools.product((0, 1), repeat=3):
        share = math.prod(q if d else 1 - q for d in drawn)
        mean = np.array(drawn) @ gradients
        present += share * np.exp(-((grid - mean) ** 2).sum(axis=-1) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    absent = np.exp(-(grid**2).sum(axis=-1) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    removal, addition = poisson_add_remove(q, sigma, group=3)
    for alpha in (0.5, 1.0, 2.0, 6.0):
        assert hockey_stick(present, absent, alpha, cell) <= pair_profile(removal, alpha, LINE) + 1e-9
        assert hockey_stick(absent, present, alpha, cell) <= pair_profile(addition, alpha, LINE) + 1e-9


# ---------------------------------------------------------------------------------------------------------- refused


def test_shuffled_batches_are_refused_and_the_refusal_says_how_wrong_poisson_would_be():
    with pytest.raises(PrivacyError, match=r"4\.23.*at least 10\.99"):
        epsilon(SampledGaussian(0.001, 0.5, 1000), delta=1e-6, sampler=Sampler.SHUFFLED)
    assert shuffled_lower_bound(0.5, 1000, 1e-6) == pytest.approx(10.997, abs=5e-4)
    # One batch: no shuffling; the bound is then below the Gaussian mechanism's own epsilon.
    assert shuffled_lower_bound(1.0, 1, 1e-5) <= 4.3771782
    with pytest.raises(InputError):
        shuffled_lower_bound(0.0, 10, 1e-6)


@pytest.mark.parametrize(
    ("assumed", "error", "match"),
    [
        ({"public_batch_size": False}, PrivacyError, "public constant"),
        ({"sampler": Sampler.FIXED_SIZE, "examples_per_unit": 2}, PrivacyError, "fixed size"),
        ({"examples_per_unit": 65}, PrivacyError, "1 to 64"),
        ({"examples_per_unit": 0}, InputError, "examples_per_unit"),
        ({"sampler": Sampler.TRUNCATED_POISSON}, InputError, "largest_batch"),
        ({"largest_batch": 7}, InputError, "largest_batch"),
        ({"examples": -1}, InputError, "examples"),
    ],
)
def test_what_has_no_sound_price_is_refused(assumed: dict[str, Any], error: type[Exception], match: str):
    with pytest.raises(error, match=match):
        epsilon(**assumed)


def test_truncated_batches_cost_the_probability_that_one_is_cut():
    wide, near, tight = (
        {"sampler": Sampler.TRUNCATED_POISSON, "examples": 100_000, "largest_batch": cap} for cap in (1400, 1200, 1100)
    )
    assert epsilon(**wide).upper == pytest.approx(epsilon().upper, rel=1e-6)
    found = epsilon(**near)
    cut = Assumptions(**near).truncation(USUAL)
    # A union over steps of the binomial tail beyond 1200, for the larger neighbour.
    assert cut == pytest.approx(1000 * stats.binom.sf(1200, 100_001, 0.01), rel=1e-3)
    composition = Composition([(poisson_add_remove(0.01, 1.0)[0], 1000)])
    at = composition.delta(found.upper)
    assert not isinstance(at, Unavailable)
    assert at[2] + (1 + math.exp(found.upper)) * cut <= DELTA
    assert found.lower < epsilon().lower < found.upper
    with pytest.raises(PrivacyError, match="no finite epsilon"):
        epsilon(**tight)


# ------------------------------------------------------------------------------------------------------- compositions


def test_phases_runs_and_their_order_compose_to_the_same_price():
    a, b = SampledGaussian(0.01, 1.0, 400), SampledGaussian(0.03, 1.5, 300)
    both = price_plan(Plan((a, b)), DELTA)
    assert price_plan(Plan((b, a)), DELTA).upper == pytest.approx(both.upper, rel=1e-9)
    assert price_plan(together(Plan((a,)), Plan((b,))), DELTA) == both
    parts = [price_plan(Plan((m,)), DELTA) for m in (a, b)]
    assert max(p.upper for p in parts) < both.lower
    assert both.upper < sum(p.upper for p in parts)
    split = price_plan(Plan((USUAL.through(300), USUAL.through(700))), DELTA)
    assert split.upper == pytest.approx(epsilon().upper, rel=1e-8)
    with pytest.raises(PrivacyError, match="different assumptions"):
        together(Plan((a,)), Plan((b,), Assumptions(Adjacency.REPLACE_ONE)))


def test_other_spending_is_composed_and_uncosted_spending_is_refused():
    bare = epsilon()
    more = epsilon(spends=(Spend("vocabulary", 0.5, 1e-7),))
    gauss = epsilon(spends=(Spend("histogram", noise_multiplier=4.0),))
    assert bare.upper < more.lower
    assert bare.upper < gauss.lower
    # Never more than basic composition: epsilons add, and so do deltas.
    rest = epsilon(delta=DELTA - 1e-7)
    assert more.upper <= rest.upper + 0.5 + 1e-6
    for bad in ({}, {"epsilon": 1.0, "noise_multiplier": 1.0}):
        with pytest.raises(PrivacyError, match="cost is not known"):
            Spend("vocabulary", **bad)
    for worse in ({"epsilon": -1.0}, {"epsilon": math.inf}, {"epsilon": 1.0, "delta": 1.0}, {"noise_multiplier": 0.0}):
        with pytest.raises(InputError):
            Spend("vocabulary", **worse)
    with pytest.raises(PrivacyError, match="no finite epsilon"):
        epsilon(spends=(Spend("vocabulary", 0.5, 2e-5),))


def test_nothing_costs_nothing():
    assert epsilon(USUAL.through(0)).upper == 0


# -------------------------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize(
    "adjacency", [Adjacency.ADD_REMOVE, pytest.param(Adjacency.REPLACE_ONE, marks=pytest.mark.slow)]
)
def test_any_two_of_noise_steps_and_epsilon_give_the_third(adjacency: Adjacency):
    assumed = Assumptions(adjacency)
    sigma = least_multiplier(2.0, sampling_rate=0.02, steps=200, delta=DELTA, assumptions=assumed)
    plan = Plan((SampledGaussian(0.02, sigma, 200),), assumed)
    assert 1.99 <= price_plan(plan, DELTA).upper <= 2.0
    steps = most_steps(2.0, sampling_rate=0.02, noise_multiplier=sigma, delta=DELTA, assumptions=assumed)
    assert 200 <= steps < 205
    assert price_plan(Plan((SampledGaussian(0.02, sigma, steps + 1),), assumed), DELTA).upper > 2.0


def test_calibration_refuses_what_cannot_be_had():
    common: dict[str, Any] = {"sampling_rate": 1.0, "delta": 1e-6, "assumptions": Assumptions()}
    with pytest.raises(InputError, match="not even one step"):
        most_steps(0.01, noise_multiplier=1.0, **common)
    with pytest.raises(InputError, match="target_epsilon"):
        most_steps(math.nan, noise_multiplier=1.0, **common)
    with pytest.raises(InputError, match="no noise multiplier"):
        least_multiplier(1e-7, steps=10**6, **common)


def test_mu_is_exact_for_full_batches_and_otherwise_no_bound():
    assert gaussian_dp(SampledGaussian(1.0, 2.0, 16)) == (2.0, "exact: every example is in every batch")
    rare = SampledGaussian(1e-4, 0.4, 1000)
    mu, kind = gaussian_dp(rare)
    assert "no bound" in kind
    said = solve_epsilon(lambda e: gaussian_log_delta(e, mu), 1e-5)[1]
    assert said < 0.25 < 2.6 < evaluate(rare, 1e-5).interval.lower  # the limit theorem is not there yet, by far


# ------------------------------------------------------------------------------------------------------ the generator


@pytest.mark.parametrize("shift", [0.2, 1.0, 2.5])
def test_the_hole_is_a_bound_for_any_direction(shift: float):
    rng = np.random.default_rng(3)
    for n in (1, 7, 400):
        for concentration in (0.0, 1.0, 6.0):
            direction = rng.exponential(size=n) ** concentration
            v = shift * direction / np.linalg.norm(direction)
            leaves = float((stats.norm.sf(CUT - v) - stats.norm.sf(CUT)).sum())
            assert leaves <= hole(shift, n)
    assert hole(shift, 1) <= 1.001 * float(stats.norm.sf(CUT - shift)) + 1e-12 * shift
    assert hole(7.0, 5) == 1.0


def test_the_cut_is_visible_and_never_negative():
    size = Coordinates(tables=50_000, dense=2_000)
    cuts = {
        mode: cut_tail([Drawn(USUAL, mode, size)], Assumptions(), epsilon=1.83, delta=DELTA)
        for mode in ("replay", "aggregate", "bridge")
    }
    assert 0 < cuts["replay"].delta < 1e-7
    assert cuts["replay"].delta < cuts["aggregate"].delta < cuts["bridge"].delta <= 1
    assert "crude" in cuts["aggregate"].words
    assert cuts["replay"].total_variation == 1.0  # useless, and said to be
    assert "says nothing" in cuts["replay"].words
    assert pytest.approx(4.7e-14, rel=0.02) == TAIL
    wide = cut_tail([Drawn(USUAL, "aggregate", Coordinates(10**12, 0))], Assumptions(), epsilon=8.0, delta=DELTA)
    assert wide.delta == 1.0
    strong = cut_tail([Drawn(SampledGaussian(0.01, 0.3, 10), "replay", size)], Assumptions(), epsilon=20.0, delta=DELTA)
    assert strong.delta > 1e-4  # at sigma 0.3 a shift of 3.3 sigma meets the cut


def test_the_cuts_of_two_runs_are_counted_at_their_common_epsilon():
    """In aggregate mode the cut is multiplied by e^epsilon, and together the runs have the larger one."""
    run = Drawn(USUAL, "aggregate", Coordinates(tables=50_000, dense=2_000))
    alone = cut_tail([run], Assumptions(), epsilon=1.83, delta=DELTA).delta
    both = cut_tail([run, run], Assumptions(), epsilon=2.7, delta=DELTA).delta
    assert both >= 2 * math.exp(2.7 - 1.83) * alone * 0.99


# ------------------------------------------------------------------------------------------------------------- faults

GOLDEN = json.loads((Path(__file__).parent / "golden" / "epsilon.json").read_text(encoding="utf-8"))["points"]


def _brackets(mechanism: SampledGaussian, truth: float) -> bool:
    found = epsilon(mechanism)
    return found.lower <= truth * (1 + 1e-7) and found.upper >= truth * (1 - 1e-7)


@pytest.mark.parametrize(
    ("fault", "mechanism"),
    [
        ("none", SampledGaussian(0.1, 1.0, 100)),
        ("q too small by one example in 100,000", SampledGaussian(0.1 * (1 - 1e-5), 1.0, 100)),
        ("one step too few", SampledGaussian(0.1, 1.0, 99)),
        ("sigma 0.01 % too large", SampledGaussian(0.1, 1.0001, 100)),
    ],
)
def test_a_mechanism_that_is_a_little_wrong_misses_the_golden_value(fault: str, mechanism: SampledGaussian):
    """Two-sided: the bracket is narrower than what one example or one step is worth."""
    truth = next(p["epsilon"] for p in GOLDEN if p["steps"] == 100)
    assert _brackets(mechanism, truth) == (fault == "none")


def test_replace_one_priced_as_add_remove_is_below_a_known_attack():
    """The likelihood ratio of the pair, composed by sampling: it shows a delta that add/remove's epsilon excludes."""
    q, sigma, steps = 0.2, 1.0, 30
    wrong = epsilon(SampledGaussian(q, sigma, steps), delta=1e-3)
    pair = poisson_replace_one(q, sigma)[0]
    composed = Composition([(pair, steps)]).delta(wrong.upper)
    assert not isinstance(composed, Unavailable)
    rng = np.random.default_rng(5)
    n = 100_000
    drawn = rng.random((n, steps)) < q
    x = rng.normal(size=(n, steps)) * sigma + drawn
    up, down = ((1 - q) + q * np.exp((2 * sign * x - 1) / (2 * sigma**2)) for sign in (1, -1))
    loss = np.log(up / down).sum(axis=1)
    gains = np.maximum(0.0, -np.expm1(wrong.upper - loss))
    low = gains.mean() - 6 * gains.std() / math.sqrt(n)
    assert low > 1e-3  # so the claim (wrong.upper, 1e-3) is refuted
    assert composed[0] <= gains.mean() + 6 * gains.std() / math.sqrt(n)
    assert composed[2] >= low


def test_a_faulty_generator_cut_would_be_seen(monkeypatch: pytest.MonkeyPatch):
    """torch's own normals end at 5.77: the term must say so."""
    size = Coordinates(tables=0, dense=2_000)
    good = cut_tail([Drawn(USUAL, "replay", size)], Assumptions(), epsilon=1.83, delta=DELTA).delta
    monkeypatch.setattr(generator, "CUT", 5.768)
    monkeypatch.setattr(generator, "TAIL", 2 * float(stats.norm.sf(5.768)))
    assert cut_tail([Drawn(USUAL, "replay", size)], Assumptions(), epsilon=1.83, delta=DELTA).delta > 1000 * good
