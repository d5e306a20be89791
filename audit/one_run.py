"""A lower bound on epsilon from one run in which every canary was in or out by its own coin, however scores depend.

Source: Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", arXiv 2305.08846.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float64
from scipy import special

from samelaw.audit.lower_bounds import check_confidence, check_delta, check_scores
from samelaw.contract.errors import InputError

LARGEST = 64
"""No larger epsilon is ever reported: no float could doubt so many right guesses."""


def one_run(
    scores: Float64[np.ndarray, "canaries"],
    included: Bool[np.ndarray, "canaries"],
    guesses: int,
    *,
    delta: float,
    confidence: float,
) -> float:
    """A lower bound on epsilon from one run in which every canary was in or out by its own fair coin.

    The canaries with the largest scores are guessed "in", as many with the smallest are guessed "out", `guesses` in
    all, and nothing is guessed of the rest. Nothing is assumed of how the scores depend on each other.

    Args:
        guesses: an even number that must not depend on `included`; use `one_run_best` to try several.

    Guarantees:
        B4  For an (epsilon, delta)-private mechanism and fair independent coins, P(bound > epsilon) <= 1 - confidence.

    Source: Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", arXiv 2305.08846, Theorem 5.2
        and Corollary 5.4.
    """
    check_scores("scores", scores, "one_run", infinite=True)
    if included.shape != scores.shape or not 2 <= guesses <= scores.size or guesses % 2:
        raise InputError(
            f"one_run needs one coin per score and an even number of guesses in 2..{scores.size}, got "
            f"{included.size} coins, {scores.size} scores and {guesses} guesses"
        )
    order = np.argsort(scores, kind="stable")
    right = int(np.count_nonzero(included[order[-guesses // 2 :]])) + int(
        np.count_nonzero(~included[order[: guesses // 2]])
    )

    return one_run_epsilon(right, guesses, canaries=scores.size, delta=delta, confidence=confidence)


def one_run_best(
    scores: Float64[np.ndarray, "canaries"],
    included: Bool[np.ndarray, "canaries"],
    *,
    delta: float,
    confidence: float,
) -> tuple[float, int]:
    """The largest of the `one_run` bounds for halving numbers of guesses, and its number of guesses.

    The error is shared among all numbers that are tried, so the guarantee is that of `one_run`.
    """
    numbers = guess_numbers(scores.size)
    each = 1 - (1 - confidence) / len(numbers)
    found = [(one_run(scores, included, r, delta=delta, confidence=each), r) for r in numbers]
    return max(found, key=lambda bound: bound[0])


@lru_cache(maxsize=1 << 14)
def one_run_epsilon(right: int, guesses: int, *, canaries: int, delta: float, confidence: float) -> float:
    """The bound of `one_run` from the number of right guesses alone; kept, since simulations ask again and again."""
    check_delta(delta, "one_run_epsilon")
    check_confidence(confidence, "one_run_epsilon")

    def p_value(epsilon: float) -> float:
        return one_run_p_value(epsilon, delta, canaries=canaries, guesses=guesses, right=right)

    level = 1 - confidence
    # The first of these at which the p-value is too large, and not just any: it need not rise everywhere.
    low = 0.0
    for high in np.arange(4 * LARGEST + 1, dtype=np.float64) / 4:
        if p_value(float(high)) > level:
            break
        low = float(high)
    else:
        return low
    if high == 0:
        return 0.0
    high = float(high)
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle) <= level else (low, middle)
    return low


def guess_numbers(canaries: int) -> list[int]:
    """Numbers of guesses to try: half of the canaries, a quarter, ..., down to about 16."""
    numbers = [2 * (canaries >> (shift + 1)) for shift in range(1, 64) if canaries >> shift >= 16]
    return numbers or [2 * (canaries // 2)]


def one_run_p_value(epsilon: float, delta: float, *, canaries: int, guesses: int, right: int) -> float:
    """A bound on P(at least `right` of `guesses` guesses are right) over all (epsilon, delta)-private mechanisms.

    With W ~ Binomial(guesses, e^eps / (1 + e^eps)) and f(v) = P(W >= v), it is
    f(v) + 2 * canaries * delta * max over i >= 1 of (f(v - i) - f(v)) / i.
    """
    rate = special.expit(epsilon)
    tail = float(special.bdtrc(right - 1, guesses, rate))
    if delta == 0 or right == 0:
        return min(1.0, tail)
    nearer = np.arange(1, right + 1)
    gained = special.bdtrc(right - 1 - nearer, guesses, rate) - tail
    return min(1.0, tail + 2 * canaries * delta * float(np.max(gained / nearer)))
