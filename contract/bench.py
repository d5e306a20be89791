"""What the bench hands to a trainer that it has never seen, and what it asks of it.

The bench dictates a problem whose gradients are known without knowing the weights. The loss of example i is linear,

    loss_i = sum over tables of <readout_i, pooled_i>  +  sum over dense parameters of <coefficient_i, parameter>,

so the gradient of a pooled vector is `readout_i` and that of a dense parameter is `coefficient_i`, whatever the
weights are. Everything that DP-SGD adds up is thereby known in advance, and the rest of the weights is noise.
docs/bench.md is the guide for those who want to put a trainer here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from samelaw.contract.errors import InputError
from samelaw.contract.trace import Pooling

NoiseSource = Literal["own", "keyed"]


@dataclass(frozen=True)
class Abilities:
    """What a trainer says it can do. What is not declared is not assessed; what is declared must hold.

    Attributes:
        noise: "own": from the trainer's own generator, so that only its law can be judged, from repeated runs.
            "keyed": from samelaw's generator in replay mode with the key NoiseKey.from_seed(seed) (docs/noise.md), so
            that the released tables must have the bits of the reference.
        iterates: weights() may be published after every step, not only release() at the end.
        noise_off: problem.noise_multiplier = 0 is allowed, and then there is no noise.
        several_tables: more than one embedding table.
        dense: dense parameters beside the tables.
        bags: any number of ids in a bag, an empty bag included; without it, one id a bag.
        repeats: an id may occur more than once in a bag (needs bags).
        mean: mean pooling (needs bags).
        weights: a weight per id, with sum pooling (needs bags).
        padding: a table may have a padding row, which reads nothing and stays as it is.
        empty_batches: a batch may have no example.
        changing_rate: the learning rate may differ from step to step.
    """

    noise: NoiseSource = "own"
    iterates: bool = False
    noise_off: bool = False
    several_tables: bool = False
    dense: bool = False
    bags: bool = False
    repeats: bool = False
    mean: bool = False
    weights: bool = False
    padding: bool = False
    empty_batches: bool = False
    changing_rate: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_ability(field.name, getattr(self, field.name), "Abilities")
        for name in ("repeats", "mean", "weights"):
            if getattr(self, name) and not self.bags:
                raise InputError(f"{name}=True needs bags=True in Abilities: it is a property of bags")

    @classmethod
    def everything(cls, *, noise: NoiseSource = "own", iterates: bool = False, noise_off: bool = True) -> Abilities:
        """Every kind of input that the bench knows."""
        kinds = {f.name: True for f in fields(cls) if f.name not in ("noise", "iterates", "noise_off")}
        return cls(noise=noise, iterates=iterates, noise_off=noise_off, **kinds)

    @classmethod
    def of(cls, record: Any, place: str) -> Abilities:
        """From the JSON object that `to_json` gives; fields that are left out are not declared.

        Raises:
            InputError: it is no such object; `place` says where it came from.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(record, Mapping) or not set(record) <= known:
            unknown = sorted(map(str, set(record) - known)) if isinstance(record, Mapping) else record
            raise InputError(f"{place} must be a JSON object with fields out of {sorted(known)}, got {unknown!r}")
        for name, value in record.items():
            _check_ability(name, value, place)
        return cls(**record)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _check_ability(name: str, value: Any, place: str) -> None:
    if name == "noise":
        if value not in get_args(NoiseSource):
            raise InputError(f"noise must be 'own' or 'keyed', got {value!r} in {place}")
    elif type(value) is not bool:
        raise InputError(f"{name} must be True or False, got {value!r} in {place}")


@dataclass(frozen=True, repr=False, eq=False)
class Reads:
    """What a batch reads from one table: one bag for each example, in the order of the examples.

    Attributes:
        ids: row ids of all bags, end to end.
        offsets: example i's bag is ids[offsets[i]:offsets[i+1]].
        readout: example i's loss holds <readout[i], its pooled vector>.
        weights: one weight an id (sum pooling), or None.
    """

    ids: Int64[np.ndarray, "ids"]
    offsets: Int64[np.ndarray, "examples_plus_1"]
    readout: Float32[np.ndarray, "examples dim"]
    weights: Float32[np.ndarray, "_ids"] | None = None

    def bag(self, example: int) -> slice:
        """Where one example's ids are."""
        return slice(int(self.offsets[example]), int(self.offsets[example + 1]))

    def __repr__(self) -> str:
        return f"Reads(bags={len(self.readout)}, ids={self.ids.size})"


@dataclass(frozen=True, repr=False, eq=False)
class BenchBatch:
    """The examples of one step, possibly none.

    Attributes:
        reads: by table.
        dense: by dense parameter, one coefficient vector an example: (examples, size).
        learning_rate: of this step.
        examples: how many examples there are.
    """

    reads: Mapping[str, Reads]
    dense: Mapping[str, Float32[np.ndarray, "_examples _size"]]
    learning_rate: float
    examples: int

    def __len__(self) -> int:
        return self.examples

    def __repr__(self) -> str:
        return f"BenchBatch(examples={self.examples})"


@dataclass(frozen=True, repr=False, eq=False)
class BenchProblem:
    """A run as the bench dictates it: the model at its initial weights, and the parameters of DP-SGD.

    One step is, for every row and every dense parameter,

        w  <-  w - learning_rate / expected_batch_size
                   * (sum of clipped gradients + N(0, (noise_multiplier * clip_norm)^2))

    where an example's gradient over all tables and dense parameters together is scaled down to norm `clip_norm` if it
    is longer.

    Attributes:
        tables: initial weights by name, (rows, dim) float32.
        dense: initial dense parameters by name, (size,) float32.
        pooling: by table: sum, or mean over the ids of the bag that are no padding.
        padding: table -> its padding row, for tables that have one.
        clip_norm: C.
        noise_multiplier: sigma; 0 is asked only of a trainer that declares noise_off.
        expected_batch_size: B, a constant; drawn batches are larger or smaller.
        learning_rates: one a step; batch.learning_rate repeats it.
    """

    tables: Mapping[str, Float32[np.ndarray, "_rows _dim"]]
    dense: Mapping[str, Float32[np.ndarray, "_size"]]
    pooling: Mapping[str, Pooling]
    padding: Mapping[str, int]
    clip_norm: float
    noise_multiplier: float
    expected_batch_size: float
    learning_rates: Sequence[float]

    @property
    def steps(self) -> int:
        return len(self.learning_rates)

    def __repr__(self) -> str:
        return f"BenchProblem(tables={len(self.tables)}, dense={len(self.dense)}, steps={self.steps})"


@runtime_checkable
class BenchTrainer(Protocol):
    """The three methods that the bench needs."""

    def train_batch(self, batch: BenchBatch) -> object:
        """Run one step of DP-SGD on exactly these examples. What it returns is ignored."""
        ...

    def weights(self) -> Mapping[str, np.ndarray]:
        """Tables and dense parameters by name, as they would be published now; asked only if iterates is declared."""
        ...

    def release(self) -> Mapping[str, np.ndarray]:
        """Tables and dense parameters by name, as published at the end of the run; called once, last."""
        ...


@runtime_checkable
class TrainerFactory(Protocol):
    """What MODULE:FACTORY names: usually the trainer's class, with its abilities as a class attribute."""

    @property
    def abilities(self) -> Abilities: ...

    def __call__(self, problem: BenchProblem, seed: int) -> BenchTrainer:
        """A fresh trainer. Two seeds must give independent noise; a trainer may ignore the seed and draw afresh."""
        ...
