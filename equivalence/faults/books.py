"""Faults of the ledger and of the accountant: what is said about the run. They are the same in every mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from scipy import optimize, stats

from samelaw.equivalence.faults.fault import Fault, Kind, Price, Scenario, Trainer, everywhere, patch, seam


def _rewrite(change: Callable[[Trainer, dict[str, Any]], dict[str, Any]]) -> Callable[[Trainer], None]:
    """A fault in what is written to the ledger about a step."""

    def apply(trainer: Trainer) -> None:
        def wrap(append: Callable[[str, dict[str, Any]], Any]) -> Callable[[str, dict[str, Any]], Any]:
            return lambda event, data: append(event, change(trainer, data) if event == "step" else data)

        patch(seam(trainer, "ledger"), "append", wrap)

    return apply


def _expected_size(trainer: Trainer, data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "examples": round(trainer.spec.expected_batch_size)}


def _previous_rate(trainer: Trainer, data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "lr": trainer.spec.schedule.rate(max(0, data["step"] - 1))}


def _averaged_noise(trainer: Trainer, data: dict[str, Any]) -> dict[str, Any]:
    """The std on the averaged gradient in place of that on the sum."""
    return {**data, "noise_std": data["noise_std"] / trainer.spec.expected_batch_size}


def _always_keyed(trainer: Trainer, data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "sampler": "keyed-poisson"}


def _no_change(trainer: Trainer) -> None:
    """The trainer is sound; the fault is in the price."""


def _half_the_steps(price: Price) -> Price:
    return lambda account: price(replace(account, steps=account.steps[::2]))


def _central_limit(price: Price) -> Price:
    """Epsilon of the Gaussian that many steps tend to, quoted as a bound."""

    def priced(account: Any) -> Any:
        sound = price(account)
        sigma, q = sound.mechanism.noise_multiplier, sound.mechanism.sampling_rate
        mu = q * math.sqrt(sound.mechanism.steps * math.expm1(sigma**-2))

        def excess(epsilon: float) -> float:
            first, second = stats.norm.cdf([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu])
            return float(first - math.exp(epsilon) * second - sound.delta)

        epsilon = float(optimize.brentq(excess, 0.0, 200.0))  # pyright: ignore[reportArgumentType]
        return replace(sound, lower=epsilon, estimate=epsilon, upper=epsilon)

    return priced


def _estimate_as_bound(price: Price) -> Price:
    """Half of the upper bound, in its place."""

    def priced(account: Any) -> Any:
        sound = price(account)
        return replace(sound, lower=sound.lower / 2, estimate=sound.estimate / 2, upper=sound.upper / 2)

    return priced


_HERE = Scenario.SAMPLED

FAULTS = (
    Fault(
        "ledger-expected-size",
        Kind.LEDGER,
        "The ledger records the expected batch size at every step, not the one that was drawn.",
        everywhere("A2"),
        _rewrite(_expected_size),
        scenario=_HERE,
    ),
    Fault(
        "ledger-previous-rate",
        Kind.LEDGER,
        "The ledger records the learning rate of the step before.",
        everywhere("A1"),
        _rewrite(_previous_rate),
        scenario=_HERE,
    ),
    Fault(
        "ledger-averaged-noise",
        Kind.LEDGER,
        "The ledger records the noise on the averaged gradient as if it were that on the sum.",
        everywhere("A1"),
        _rewrite(_averaged_noise),
        scenario=_HERE,
    ),
    Fault(
        "ledger-always-keyed",
        Kind.LEDGER,
        "The ledger calls every batch a keyed Poisson sample, also those that came from outside.",
        everywhere("A2"),
        _rewrite(_always_keyed),
    ),
    Fault(
        "priced-at-half-the-steps",
        Kind.ACCOUNTING,
        "Every second step is priced.",
        everywhere("A2"),
        _no_change,
        scenario=_HERE,
        pricing=_half_the_steps,
    ),
    Fault(
        "priced-by-central-limit",
        Kind.ACCOUNTING,
        "The epsilon of the limiting Gaussian is quoted, which is no bound.",
        everywhere("A1"),
        _no_change,
        seen="Opacus's GDP accountant",
        scenario=_HERE,
        pricing=_central_limit,
    ),
    Fault(
        "priced-at-half",
        Kind.ACCOUNTING,
        "The accountant's numbers are half of what they should be.",
        everywhere("A1"),
        _no_change,
        scenario=_HERE,
        pricing=_estimate_as_bound,
    ),
)
