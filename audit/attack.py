"""What the scores of planted canaries say against a claimed epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64
from scipy import special, stats

from samelaw.audit import lower_bounds
from samelaw.audit.attack_result import AttackResult, Bound, Claim, Outcome
from samelaw.audit.canaries import Scores
from samelaw.audit.lower_bounds import Halves
from samelaw.audit.one_run import one_run_best
from samelaw.contract.errors import InputError

SHAPE_LEVEL = 1e-6
"""Level of each test of whether scores are Gaussian with one variance; a bound that needs it is withheld otherwise."""

_INDEPENDENT = "scores of different canaries are independent, as they are when rows draw their noise independently"
_GAUSSIAN = f"{_INDEPENDENT}; they are Gaussian, with one variance for included and left-out canaries"
_ASSUMES = {
    "gaussian": _GAUSSIAN,
    "gdp-clopper-pearson": f"{_INDEPENDENT}; the trade-off curve is that of a Gaussian mechanism",
    "clopper-pearson": _INDEPENDENT,
    "one-run": "nothing more",
}


def judge(scores: Scores, claim: Claim, *, confidence: float = 0.95, false_alarm: float = 1e-6) -> AttackResult:
    """Bound epsilon from below in every way that applies, and hold it against the claim.

    The bounds share 1 - confidence, and the refutation shares `false_alarm`, evenly among the four methods: whichever
    is largest may be quoted.

    Raises:
        InputError: fewer canaries on one side than any bound can use; confidence or false_alarm out of range.
    """
    check_levels(confidence, false_alarm)
    fewest = min(int(np.count_nonzero(scores.included)), int(np.count_nonzero(~scores.included)))
    if fewest < 2 * lower_bounds.FEWEST:
        raise InputError(
            f"canaries must be at least {2 * lower_bounds.FEWEST} on each side of the coins, got {fewest}: plant more"
        )
    levels = tuple(1 - error / len(_ASSUMES) for error in (1 - confidence, false_alarm))
    full_batches = claim.sampling_rate == 1
    misfit = _misfit(scores) if full_batches else "the sampling rate is below 1: no single Gaussian mechanism"
    bounds = (
        _gaussian(scores, claim.delta, levels, misfit),
        _gdp(scores, claim.delta, levels, misfit),
        _clopper_pearson(scores, claim.delta, levels),
        _one_run(scores, claim.delta, levels),
    )
    ceiling = lower_bounds.largest_epsilon(fewest - fewest // 2, delta=claim.delta, confidence=levels[1])
    outcome, reason = _conclude(
        bounds, claim, ceiling, confidence, false_alarm, int(np.count_nonzero(scores.unchanged))
    )
    return AttackResult(
        outcome, reason, claim, bounds,
        canaries=scores.moved.size,
        included=int(np.count_nonzero(scores.included)),
        confidence=confidence,
        false_alarm=false_alarm,
        ceiling=ceiling,
        detectable_noise=None if claim.mu is None else _detectable_noise(claim.mu, scores, levels[1]),
        unchanged=(
            int(np.count_nonzero(scores.unchanged & scores.included)),
            int(np.count_nonzero(scores.unchanged & ~scores.included)),
        ),
    )  # fmt: skip


def check_levels(confidence: float, false_alarm: float) -> None:
    """Raises InputError unless the levels are those of a bound and of a stricter refutation."""
    lower_bounds.check_confidence(confidence, "judge")
    if not 1e-12 <= false_alarm <= 1 - confidence:
        raise InputError(
            f"false_alarm must be in 1e-12..{1 - confidence:g} (1 - confidence), got {false_alarm!r} in judge"
        )


def likelihood_ratio(scores: Scores, fitted: np.ndarray) -> Float64[np.ndarray, "canaries"]:
    """A score that grows with how much likelier a canary is to be in, by two Gaussians fitted to the canaries `fitted`.

    Rows that kept their initial bits stand at the end of the side on which they are commoner. It is a statistic and no
    model: a bound that counts other canaries than the fitted ones is valid however badly the Gaussians fit.
    """
    changed = ~scores.unchanged
    inside, outside = (_fit(scores.moved[fitted & changed & group]) for group in (scores.included, ~scores.included))
    if inside is not None and outside is not None:
        (m1, s1), (m0, s0) = inside, outside
        ratio = ((scores.moved - m0) / s0) ** 2 / 2 - ((scores.moved - m1) / s1) ** 2 / 2 + math.log(s0 / s1)
    else:  # a row that moved speaks for the group that has such rows
        sign = 0.0 if inside is outside else math.inf if outside is None else -math.inf
        ratio = np.full(scores.moved.shape, sign)
    shares = [float(np.mean(scores.unchanged[fitted & group])) for group in (scores.included, ~scores.included)]
    return np.where(scores.unchanged, math.inf if shares[0] > shares[1] else -math.inf, ratio)


def _fit(moved: Float64[np.ndarray, "_"]) -> tuple[float, float] | None:
    """Mean and std, the latter kept off zero; None when there is nothing to fit."""
    if moved.size < 2:
        return None
    return float(np.mean(moved)), max(float(np.std(moved)), 1e-9 * (1.0 + float(np.max(np.abs(moved)))))


def _misfit(scores: Scores) -> str:
    """Why the scores are not those of one Gaussian mechanism; empty when nothing speaks against it."""
    groups = {"included": scores.moved[scores.included], "left-out": scores.moved[~scores.included]}
    if scores.unchanged.any():
        return f"{np.count_nonzero(scores.unchanged)} rows kept their initial bits: no Gaussian noise"
    stds = [float(np.std(group, ddof=1)) for group in groups.values()]
    if min(stds) == 0:
        return "scores do not vary"
    law = stats.f(groups["included"].size - 1, groups["left-out"].size - 1)
    quotient = (stds[0] / stds[1]) ** 2
    if 2 * min(law.cdf(quotient), law.sf(quotient)) < SHAPE_LEVEL:
        return f"the std of included canaries is {stds[0] / stds[1]:.3g} times that of the left-out ones (F test)"
    for name, group in groups.items():
        if group.size >= 20 and float(stats.normaltest(group).pvalue) < SHAPE_LEVEL:
            return f"the scores of {name} canaries are not Gaussian (D'Agostino and Pearson's test)"
    return ""


def _gaussian(scores: Scores, delta: float, levels: tuple[float, ...], misfit: str) -> Bound:
    def mu_at(confidence: float) -> float:
        return lower_bounds.gaussian_mu(
            scores.moved[scores.included], scores.moved[~scores.included], confidence=confidence
        )

    return _from_mu("gaussian", mu_at, delta, levels, misfit, "noncentral t on all scores")


def _gdp(scores: Scores, delta: float, levels: tuple[float, ...], misfit: str) -> Bound:
    halves = Halves.of(scores.moved[scores.included], scores.moved[~scores.included])
    return _from_mu(
        "gdp-clopper-pearson",
        lambda confidence: lower_bounds.gdp_clopper_pearson(halves, confidence=confidence),
        delta, levels, misfit, "threshold chosen on one half, counted on the other",
    )  # fmt: skip


def _from_mu(
    method: str, mu_at: Callable[[float], float], delta: float, levels: tuple[float, ...], misfit: str, note: str
) -> Bound:
    if misfit:
        return Bound(method, None, None, None, _ASSUMES[method], f"not assessed: {misfit}")
    mus = [mu_at(level) for level in levels]
    epsilons = [lower_bounds.epsilon_of_mu(mu, delta) for mu in mus]
    return Bound(method, epsilons[0], epsilons[1], mus[0], _ASSUMES[method], note)


def _clopper_pearson(scores: Scores, delta: float, levels: tuple[float, ...]) -> Bound:
    fitted = np.zeros(scores.moved.size, dtype=np.bool_)
    for group in (np.flatnonzero(scores.included), np.flatnonzero(~scores.included)):
        fitted[group[: group.size // 2]] = True
    ratio = likelihood_ratio(scores, fitted)
    halves = Halves(
        ratio[fitted & scores.included],
        ratio[fitted & ~scores.included],
        ratio[~fitted & scores.included],
        ratio[~fitted & ~scores.included],
    )
    found = [lower_bounds.clopper_pearson(halves, delta=delta, confidence=level) for level in levels]
    note = "statistic and threshold chosen on one half, counted on the other"
    return Bound("clopper-pearson", found[0], found[1], None, _ASSUMES["clopper-pearson"], note)


def _one_run(scores: Scores, delta: float, levels: tuple[float, ...]) -> Bound:
    """The statistic is fixed beforehand: movement along the gradient, and a row that never moved is guessed out."""
    statistic = np.where(scores.unchanged, -math.inf, scores.moved)
    found = [one_run_best(statistic, scores.included, delta=delta, confidence=level) for level in levels]
    note = f"{found[0][1]} guesses among {scores.moved.size} canaries"
    return Bound("one-run", found[0][0], found[1][0], None, _ASSUMES["one-run"], note)


def _conclude(
    bounds: tuple[Bound, ...], claim: Claim, ceiling: float, confidence: float, false_alarm: float, unchanged: int
) -> tuple[Outcome, str]:
    assessed = [bound for bound in bounds if bound.epsilon is not None]
    above = [bound.method for bound in assessed if (bound.strict or 0.0) > claim.upper]
    if above:
        return Outcome.REFUTED, (
            f"{', '.join(above)}: epsilon is larger than claimed; a run as claimed gives such scores with probability "
            f"at most {false_alarm:g}"
        )
    near = [bound.method for bound in assessed if (bound.epsilon or 0.0) > claim.upper]
    if near:
        return Outcome.INCONCLUSIVE, (
            f"{', '.join(near)}: above the claim at confidence {confidence:g}, but not at the false-alarm rate of "
            f"{false_alarm:g}: repeat with more canaries"
        )
    if unchanged:
        return Outcome.INCONCLUSIVE, (
            f"{unchanged} canaries have a row at its initial bits, which noise makes all but impossible: either rows "
            "go without noise, too few to show more, or the learning rate is too small for float32 weights to move"
        )
    if ceiling <= claim.upper:
        return Outcome.INCONCLUSIVE, (
            f"with so few canaries no score, however certain, could show more than epsilon {ceiling:.3g} without "
            "assuming Gaussian noise: plant more, or attack a run with more noise"
        )
    return Outcome.NOT_REFUTED, "no bound is above the claim; that proves nothing about the trainer"


def _detectable_noise(mu: float, scores: Scores, level: float) -> float:
    """Share f of the declared std at which the Gaussian bound exceeds mu with probability 0.99.

    The estimate of mu / f has variance 1/n + 1/m + (mu / f)^2 / (2 (n + m)), by the delta method.
    """
    n, m = int(np.count_nonzero(scores.included)), int(np.count_nonzero(~scores.included))
    needed = float(special.ndtri(level) + special.ndtri(0.99))
    larger = mu
    for _ in range(100):  # a contraction as long as needed^2 is small against n + m
        larger = mu + needed * math.sqrt(1 / n + 1 / m + larger**2 / (2 * (n + m)))
        if not math.isfinite(larger):
            return 0.0
    return mu / larger
