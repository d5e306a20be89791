"""What is priced: a number of steps of the Poisson-subsampled Gaussian mechanism, as a ledger says they happened."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samelaw.contract.errors import InputError, LedgerError, PrivacyError
from samelaw.contract.ledger import Spent

LARGEST_STEPS = 1 << 31
SMALLEST_RATE = 1e-18
SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER = 1e-6, 1e12
ROUNDING = 2.0**-20
"""Largest relative amount by which rounding a_t and s_t to float32 may lower the multiplier of one step."""


@dataclass(frozen=True)
class SampledGaussian:
    """`steps` releases of (sum of the drawn examples' contributions) + N(0, (noise_multiplier * C)^2).

    Every example joins each batch independently with probability `sampling_rate`, and its contribution has joint L2
    norm at most C. Neighbouring data sets differ in one example (add/remove). The output of every step is taken as
    published, so this also covers any release in between and anything computed from the outputs.

    Attributes:
        sampling_rate: q in (0, 1].
        noise_multiplier: sigma > 0, in units of C.
        steps: T >= 0.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.sampling_rate <= 1:
            raise InputError(f"sampling_rate must be in (0, 1], got {self.sampling_rate!r}")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise InputError(f"noise_multiplier must be finite and >= 0, got {self.noise_multiplier!r}")
        if self.noise_multiplier == 0:
            raise PrivacyError(
                "noise_multiplier is 0: epsilon is infinite at every delta below 1, so there is nothing to price. "
                "A run without noise is for tests; train with noise_multiplier > 0 before publishing."
            )
        if self.sampling_rate < SMALLEST_RATE or not SMALLEST_MULTIPLIER <= self.noise_multiplier <= LARGEST_MULTIPLIER:
            raise InputError(
                f"sampling_rate must be at least {SMALLEST_RATE:g} and noise_multiplier in {SMALLEST_MULTIPLIER:g}.."
                f"{LARGEST_MULTIPLIER:g} to be priced in float64, got {self.sampling_rate!r} and "
                f"{self.noise_multiplier!r}"
            )
        if not 0 <= self.steps <= LARGEST_STEPS:
            raise InputError(f"steps must be in 0..2^31, got {self.steps}")

    def through(self, steps: int) -> SampledGaussian:
        """The same mechanism after fewer steps."""
        return replace(self, steps=steps)


@dataclass(frozen=True)
class Priced:
    """A mechanism read from a ledger, with the delta that its law declares.

    Attributes:
        mechanism: what happened; where steps differ, the largest rate and the least noise of any.
        phases: the same, steps of one rate and multiplier together.
        spends: what else was learned from the same data, as the ledger says.
        mode: how owed noise was drawn.
        table_coordinates, dense_coordinates: how many numbers of the model got noise.
        delta: where epsilon is quoted.
        declared_noise_multiplier: sigma of the law; the mechanism's may be lower by float32 rounding.
        key_origin: where the noise key came from, "os", "file" or "seed".
        examples: size of the training set, as opened.
        releases, resumes: how often weights left, and how often the run was resumed.
    """

    mechanism: SampledGaussian
    delta: float
    declared_noise_multiplier: float
    key_origin: str
    examples: int
    releases: int
    resumes: int
    phases: tuple[SampledGaussian, ...]
    spends: tuple[Mapping[str, Any], ...]
    mode: str
    table_coordinates: int
    dense_coordinates: int


def mechanism_of(account: Spent) -> Priced:
    """Read what was spent from a resolved ledger, and refuse what cannot be priced soundly.

    A step at learning rate 0 publishes nothing new but is charged like any other.

    Raises:
        LedgerError: an entry lacks what pricing needs, or the law does not hash to the digest beside it.
        PrivacyError: the sampler of a step is not "keyed-poisson"; there is no noise; the noise of a step is not
            sigma * C of the law, or of what the step itself declares; rounding to float32 took noise away; the
            adjacency is not add/remove; there are more steps than the law declares.
    """
    try:
        return _read(account)
    except (KeyError, TypeError, ValueError, OverflowError) as cause:
        if isinstance(cause, InputError):
            raise PrivacyError(f"the ledger's law cannot be priced: {cause}") from cause
        raise LedgerError(f"the ledger lacks a value that pricing needs: {cause!r}") from cause


def _read(account: Spent) -> Priced:
    law = _law(account.opened)
    clip_norm, sigma = float(law["clip_norm"]), float(law["noise_multiplier"])
    batch = float(law["expected_batch_size"])
    declared = int(law["schedule"]["steps"])
    if len(account.steps) > declared:
        raise PrivacyError(
            f"the ledger has {len(account.steps)} steps and its law declares {declared}: a run cannot be longer than "
            "declared, since its learning rates beyond were not a function of the step"
        )
    rate = float(law["sampling_rate"])
    applied: dict[tuple[float, float], tuple[float, int]] = {}
    for index, step in enumerate(account.steps):
        where = f"step {index} of the ledger"
        if step["sampler"] != "keyed-poisson":
            raise PrivacyError(
                f"{where} was sampled by {step['sampler']!r}; only 'keyed-poisson' can be priced, since amplification "
                "by sampling needs every example to join independently. Train with the trainer's own sample()."
            )
        clip_then, sigma_then, rate_then = (
            float(step.get(name, value))
            for name, value in (("clip_norm", clip_norm), ("noise_multiplier", sigma), ("sampling_rate", rate))
        )
        noise_std = float(step["noise_std"])
        if noise_std != sigma_then * clip_then or not clip_then > 0:
            raise PrivacyError(
                f"{where} added noise of std {noise_std!r} to the sum; its noise_multiplier * clip_norm is "
                f"{sigma_then * clip_then!r}. A step whose noise is not the declared one is not priced."
            )
        multiplier = applied_multiplier(float(step["lr"]), noise_std, clip_then, batch, where=where)
        least, count = applied.get((rate_then, sigma_then), (sigma_then, 0))
        applied[rate_then, sigma_then] = min(least, multiplier), count + 1
    applied = applied or {(rate, sigma): (sigma, 0)}
    phases = tuple(SampledGaussian(q, least, count) for (q, _), (least, count) in applied.items())
    return Priced(
        mechanism=SampledGaussian(
            max(p.sampling_rate for p in phases), min(p.noise_multiplier for p in phases), len(account.steps)
        ),
        delta=float(law["delta"]),
        declared_noise_multiplier=sigma,
        key_origin=str(account.opened.get("key_origin", "unknown")),
        examples=int(account.opened["examples"]),
        releases=len(account.releases),
        resumes=account.resumes,
        phases=phases,
        spends=tuple(account.spends),
        mode=str(law["mode"]),
        table_coordinates=sum(int(size[0]) * int(size[1]) for size in account.opened["tables"].values()),
        dense_coordinates=sum(math.prod(map(int, shape)) for shape in account.opened["dense"].values()),
    )


def applied_multiplier(rate: float, noise_std: float, clip_norm: float, batch: float, *, where: str) -> float:
    """sigma as a step applied it: s_t / (a_t * C), with both scales rounded to float32 as docs/arithmetic.md says.

    Raises:
        PrivacyError: rounding lowered it by more than 2^-20, e.g. because s_t underflows.
    """
    declared = noise_std / clip_norm
    with np.errstate(over="ignore", under="ignore"):
        gradient_scale = float(np.float32(rate / batch))
        noise_scale = float(np.float32(rate * (noise_std / batch)))
    if gradient_scale == 0:
        return declared  # the step moved no weight by a gradient
    applied = noise_scale / (gradient_scale * clip_norm)
    if not applied >= declared * (1 - ROUNDING):
        raise PrivacyError(
            f"{where} has learning rate {rate!r}: in float32 its noise scale is {noise_scale!r} and its gradient scale "
            f"{gradient_scale!r}, a noise multiplier of {applied!r} instead of {declared!r}. Use a larger learning "
            "rate or expected batch size, so that neither underflows."
        )
    return min(applied, declared)


def _law(opened: Mapping[str, Any]) -> Mapping[str, Any]:
    """The law of the opening entry, if it is whole and can be priced."""
    law = opened["law"]
    digest = hashlib.sha256(json.dumps(law, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    if digest != opened["law_digest"]:
        raise LedgerError(
            f"the law in the ledger hashes to {digest}, and the ledger says {opened['law_digest']}: one of them was "
            "edited"
        )
    if law["adjacency"] != "add_remove":
        raise PrivacyError(f"adjacency must be 'add_remove' to be priced, got {law['adjacency']!r}")
    for name in ("clip_norm", "expected_batch_size"):
        if not (math.isfinite(float(law[name])) and float(law[name]) > 0):
            raise PrivacyError(f"{name} of the law must be finite and > 0, got {law[name]!r}")
    return law
