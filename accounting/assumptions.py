"""What a price rests on, as values: neighbours, sampler, unit of privacy, what is released, what divides the sum.

Each is priced soundly or refused with the reason; nothing is silently taken for something else.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from scipy import special, stats

from samelaw.accounting.mechanism import SampledGaussian
from samelaw.accounting.pairs import Pair, fixed_size, poisson_add_remove, poisson_replace_one
from samelaw.contract.errors import InputError, PrivacyError
from samelaw.contract.figures import rounded_down, rounded_up


class Adjacency(StrEnum):
    """When two data sets are neighbours: they differ in one unit of privacy that is ..."""

    ADD_REMOVE = "add_remove"  # in one and absent from the other
    REPLACE_ONE = "replace_one"  # replaced by any other
    ZERO_OUT = "zero_out"  # replaced by one that contributes nothing


class Sampler(StrEnum):
    """How batches were drawn."""

    POISSON = "poisson"  # every example independently
    TRUNCATED_POISSON = "truncated_poisson"  # the same, cut to a largest batch by a rule that ignores the data
    FIXED_SIZE = "fixed_size"  # a subset of fixed size without replacement, anew at every step
    SHUFFLED = "shuffled"  # slices of a permutation


class Released(StrEnum):
    """What leaves. Both cost the same here: no amplification by iteration is claimed."""

    FINAL_MODEL = "final_model"
    EVERY_ITERATE = "every_iterate"


@dataclass(frozen=True)
class Assumptions:
    """What is taken for granted when a mechanism is priced.

    Attributes:
        adjacency, sampler, released: see there.
        examples_per_unit: k >= 1, how many examples one unit of privacy (a person) gives at most.
        examples: size of the data set; needed for truncated Poisson batches.
        largest_batch: where truncated Poisson batches are cut.
        public_batch_size: whether the constant that divides the noisy sum was fixed without looking at the data.
    """

    adjacency: Adjacency = Adjacency.ADD_REMOVE
    sampler: Sampler = Sampler.POISSON
    examples_per_unit: int = 1
    released: Released = Released.EVERY_ITERATE
    examples: int | None = None
    largest_batch: int | None = None
    public_batch_size: bool = True

    def __post_init__(self) -> None:
        if type(self.examples_per_unit) is not int or self.examples_per_unit < 1:
            raise InputError(f"examples_per_unit must be a whole number >= 1, got {self.examples_per_unit!r}")
        for name in ("examples", "largest_batch"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"{name} must be a whole number >= 1, got {value!r}")
        truncated = self.sampler is Sampler.TRUNCATED_POISSON
        if truncated and (self.examples is None or self.largest_batch is None):
            raise InputError("truncated Poisson batches need examples and largest_batch, to bound how often one is cut")
        if not truncated and self.largest_batch is not None:
            raise InputError(f"largest_batch is for truncated Poisson batches; the sampler is {self.sampler!s}")
        if not self.public_batch_size:
            raise PrivacyError(
                "the batch size that divides the noisy sum must be a public constant: the size as drawn tells whether "
                "an example is there, and no noise covers it. Divide by the expected batch size, fixed beforehand."
            )

    @property
    def plain(self) -> bool:
        """Whether every engine prices this case, rather than the contour integral alone."""
        return (
            self.sampler is Sampler.POISSON
            and self.adjacency is not Adjacency.REPLACE_ONE
            and self.examples_per_unit == 1
        )

    def directions(self, mechanism: SampledGaussian) -> tuple[Pair, ...]:
        """One dominating pair of one step for each direction in which neighbours can be told apart.

        All steps of a composition are taken in one direction: an example that is added is added for all of them.

        Raises:
            PrivacyError: no sound price is known.
        """
        q, sigma, k = mechanism.sampling_rate, mechanism.noise_multiplier, self.examples_per_unit
        if self.sampler is Sampler.SHUFFLED:
            raise PrivacyError(
                "shuffled batches cannot be priced as Poisson ones: the same noise then costs more, and no tight bound "
                f"is known. {shuffled_words(sigma, round(1 / q))}"
                "Sample every example independently: the trainer's sample() does."
            )
        if self.sampler is Sampler.FIXED_SIZE:
            if k > 1:
                raise PrivacyError(
                    f"batches of fixed size with {k} examples per unit are not priced: no dominating pair for groups "
                    "is implemented. Use Poisson batches."
                )
            return fixed_size(q, sigma, symmetric=self.adjacency is not Adjacency.ADD_REMOVE)
        if self.adjacency is Adjacency.REPLACE_ONE:
            return poisson_replace_one(q, sigma, k)
        return poisson_add_remove(q, sigma, k)

    def truncation(self, mechanism: SampledGaussian) -> float:
        """Probability that any batch of the run was cut, for the larger of the neighbours: rounded up."""
        if self.sampler is not Sampler.TRUNCATED_POISSON:
            return 0.0
        assert self.examples is not None
        assert self.largest_batch is not None
        size = self.examples + self.examples_per_unit
        each = float(stats.binom.sf(self.largest_batch, size, mechanism.sampling_rate))
        # scipy's tail is good to 1e-12 or so of itself where it is above its smallest number.
        return min(1.0, mechanism.steps * (each * (1 + 1e-6) + 1e-300))

    def words(self) -> tuple[str, ...]:
        """The same in sentences, for a statement."""
        unit = "example" if self.examples_per_unit == 1 else f"unit of at most {self.examples_per_unit} examples"
        neighbours = {
            Adjacency.ADD_REMOVE: f"differ in one {unit}, present in one and absent from the other (add/remove)",
            Adjacency.REPLACE_ONE: f"have the same size and differ in one {unit}, which is replaced (replace-one)",
            Adjacency.ZERO_OUT: f"differ in one {unit}, which contributes nothing in one of them (zero-out)",
        }[self.adjacency]
        sampled = {
            Sampler.POISSON: "Every example joined every batch independently with probability sampling_rate, by "
            "secret draws.",
            Sampler.TRUNCATED_POISSON: "Every example joined every batch independently with probability sampling_rate, "
            f"by secret draws; batches above {self.largest_batch} were cut by a rule that looks at no data, and delta "
            "holds the probability that one was.",
            Sampler.FIXED_SIZE: "Every batch was a secret, uniform subset of fixed size, drawn anew at every step; "
            "sampling_rate is batch size / number of examples.",
            Sampler.SHUFFLED: "Batches were slices of a permutation.",
        }[self.sampler]
        released = {
            Released.EVERY_ITERATE: "Whoever sees the result may have seen the model after every step",
            Released.FINAL_MODEL: "Only the final model is released, and it is priced as if every iterate were: no "
            "amplification by iteration is claimed. The reader may have seen the model after every step",
        }[self.released]
        return (
            f"Neighbouring data sets {neighbours}.",
            sampled,
            f"{released}, but not the batches, the ledger or the key.",
        )

    def to_json(self) -> dict[str, Any]:
        return {name: str(v) if isinstance(v, StrEnum) else v for name, v in asdict(self).items()}


def shuffled_lower_bound(noise_multiplier: float, batches: int, delta: float) -> float:
    """Epsilon is at least this for one epoch of shuffled batches (zero-out adjacency), whatever the accountant says.

    A data set in which every other example pulls one way and one the other way: the adversary looks at the largest
    batch sum and holds it against a threshold. Its probability is P = 1 - Phi((x-2)/s) Phi(x/s)^(T-1) with the example
    and Q = 1 - Phi((x-1)/s) Phi(x/s)^(T-1) without; epsilon >= ln((P - delta) / Q) for every x.

    Source: Chua et al., "How private are DP-SGD implementations?", arXiv 2403.17673.
    """
    import numpy as np

    if batches < 1 or not noise_multiplier > 0 or not 0 < delta < 1:
        raise InputError("shuffled_lower_bound needs batches >= 1, noise_multiplier > 0 and delta in (0, 1)")
    x = np.linspace(-6 * noise_multiplier, 2 + 12 * noise_multiplier, 40_001)
    others = (batches - 1) * special.log_ndtr(x / noise_multiplier)
    with_it = -np.expm1(special.log_ndtr((x - 2) / noise_multiplier) + others)
    without = -np.expm1(special.log_ndtr((x - 1) / noise_multiplier) + others)
    # 1e-12: rounding of the probabilities, against us.
    useful = (with_it * (1 - 1e-12) > delta) & (without > 1e-290)
    values = np.log((with_it[useful] * (1 - 1e-12) - delta) / (without[useful] * (1 + 1e-12) + 1e-16))
    return max(0.0, float(values.max(initial=0.0)))


def shuffled_words(noise_multiplier: float, batches: int, delta: float = 1e-6) -> str:
    """How wrong Poisson pricing would be for one epoch, as a sentence; empty where the bound says nothing."""
    from samelaw.accounting.contour import contour_interval
    from samelaw.accounting.interval import Interval

    if not 2 <= batches <= 10**7:
        return ""
    least = shuffled_lower_bound(noise_multiplier, batches, delta)
    said = contour_interval([[(pair, batches)] for pair in poisson_add_remove(1 / batches, noise_multiplier)], delta)
    if not isinstance(said, Interval) or least <= said.upper:
        return ""
    return (
        f"For one epoch of {batches} batches at noise multiplier {noise_multiplier:g} and delta {delta:g}, Poisson "
        f"accounting would say epsilon {rounded_up(said.upper, 4)} where at least {rounded_down(least, 5)} is true. "
    )


def combined_multiplier(*multipliers: float) -> float:
    """The multiplier of one release that costs what several Gaussian releases from one sample cost together.

    Scaled to unit noise, the releases are one Gaussian vector whose mean an example moves by the root of the sum of
    1 / sigma_i^2. Pricing them as separately sampled mechanisms would be too cheap: their losses are not independent.
    """
    if not multipliers or not all(math.isfinite(m) and m > 0 for m in multipliers):
        raise InputError(f"noise multipliers must be finite and > 0, got {multipliers!r}")
    # Rounded down by more than the arithmetic's error: less noise costs more.
    return sum(m**-2 for m in multipliers) ** -0.5 * (1 - 2**-50)


def gaussian_dp(mechanism: SampledGaussian) -> tuple[float, str]:
    """mu of Gaussian differential privacy, and what kind of number that is.

    Exact for full batches. Otherwise the central limit theorem's mu = q sqrt(T (exp(1/sigma^2) - 1)), which is no
    bound: at (q, sigma, T, delta) = (1e-5, 0.4, 1000, 1e-6) it says epsilon 0.024 where 0.85 is true.

    Source: Dong, Roth and Su, arXiv 1905.02383; Bu, Dong, Long and Su, arXiv 1911.11607 (Poisson sampling).
    """
    q, sigma, steps = mechanism.sampling_rate, mechanism.noise_multiplier, mechanism.steps
    if q == 1:
        return math.sqrt(steps) / sigma, "exact: every example is in every batch"
    exponent = sigma**-2
    mu = q * math.sqrt(steps) * math.sqrt(math.expm1(exponent)) if exponent < 700 else math.inf
    return mu, "an approximation by the central limit theorem, and no bound: never quote it as a promise"
