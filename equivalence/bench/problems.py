"""What the bench asks for: small inputs that show one thing each, and longer runs for the law of the noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np

from samelaw.contract.bench import Abilities, BenchBatch, BenchProblem, Reads
from samelaw.contract.trace import Pooling

CLIP_NORM = 0.5  # not 1: a clip norm that is missing or squared must show
QUIET = 2.0**-10  # noise multiplier of the small inputs, for a trainer that cannot turn its noise off
LAW_STEPS = 8
EMPTY_STEPS = 3
DIM = 32
_SMALL_DIM = 4
_SMALL_DENSE = 8
_LAW_RATES = (0.5, 1.0, 1.0, 0.25, 0.75, 1.0, 0.5, 1.0)
_LAW_EXAMPLES = (14, 9, 20, 13, 7, 16, 11, 15)  # never the expected 12
_LAW_BATCH_SIZE = 12.0
_HISTORY_EXAMPLES = (14, 3, 20, 0, 7, 2)  # 0: an empty batch, where the trainer takes one
HISTORY_DROPS = (0, 2, 5)  # steps whose last example a neighbour lacks: the first, a large one, the last
AFTER_READS = (14,) + (0,) * (EMPTY_STEPS - 1)


@dataclass(frozen=True, repr=False)
class Job:
    """One run that a trainer is asked for.

    Attributes:
        name: in the report's words.
        problem, batches: what to train on; batches has one entry a step.
        seed: handed to the factory.
        iterates: ask for weights() after every step.
    """

    name: str
    problem: BenchProblem
    batches: tuple[BenchBatch, ...]
    seed: int
    iterates: bool = False

    def __repr__(self) -> str:
        return f"Job({self.name!r})"


@dataclass(frozen=True)
class Bag:
    """One example's ids in one table, the gradient of its pooled vector, and the weights of the ids."""

    ids: tuple[int, ...]
    readout: tuple[float, ...]
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Small:
    """An input of a few examples. Each example is table -> Bag; "bias" -> the coefficients of the dense parameter."""

    name: str
    shown: str
    examples: tuple[Mapping[str, Bag | tuple[float, ...]], ...]
    needs: frozenset[str] = frozenset()
    pooling: Pooling = Pooling.SUM
    padding: bool = False
    expected: float = 4.0

    def without(self, example: int) -> Small:
        """The neighbour that lacks one example, of two or more."""
        kept = self.examples[:example] + self.examples[example + 1 :]
        return replace(self, examples=kept, name=f"{self.name}, without example {example}")


def small_inputs(abilities: Abilities) -> list[Small]:
    """Every small input that the trainer's abilities allow."""
    return [case for case in _SMALL if all(getattr(abilities, need) for need in case.needs)]


def left_out(abilities: Abilities) -> list[str]:
    """Names of the small inputs that need what is not declared."""
    allowed = {case.name for case in small_inputs(abilities)}
    return [case.name for case in _SMALL if case.name not in allowed]


def small_job(case: Small, abilities: Abilities, seed: int) -> Job:
    """One step on a small input: without noise where it can be turned off, with little where not."""
    rng = np.random.default_rng(0)
    tables = {"item": _weights(rng, 6, _SMALL_DIM)}
    if abilities.several_tables:
        tables["user"] = _weights(rng, 5, _SMALL_DIM)
    dense = {"bias": _weights(rng, 1, _SMALL_DENSE)[0]} if abilities.dense else {}
    problem = BenchProblem(
        tables,
        dense,
        pooling=dict.fromkeys(tables, case.pooling),
        padding={"item": 0} if case.padding else {},
        clip_norm=CLIP_NORM,
        noise_multiplier=0.0 if abilities.noise_off else QUIET,
        expected_batch_size=case.expected,
        learning_rates=(2.0,),
    )
    return Job(case.name, problem, (_small_batch(case, problem),), seed)


def padded_job(abilities: Abilities, seed: int) -> Job:
    """A step with a padding row and full noise, which must spare that row."""
    case = next(case for case in _SMALL if case.name == "padding alone")
    job = small_job(case, abilities, seed)
    return replace(job, name="padding, with noise", problem=replace(job.problem, noise_multiplier=1.0))


def law_job(abilities: Abilities, seed: int, *, steps: int = LAW_STEPS, name: str = "the noise of a run") -> Job:
    """A run whose noise is judged: half of the rows may be read, the other half never is.

    Its inputs are plain ones (distinct ids, sum pooling), so that what is found here is about the noise.
    """
    problem, batches = _law_run(abilities, _LAW_EXAMPLES[:steps])
    return Job(name, problem, batches, seed, iterates=abilities.iterates and steps > 1)


def history_job(abilities: Abilities, seed: int, *, drop: int | None = None) -> Job:
    """Several steps without noise (or with little): a wrong sum that needs a step before it to show.

    Args:
        drop: the neighbour that lacks the last example of this step.
    """
    examples = tuple(n if n or abilities.empty_batches else 9 for n in _HISTORY_EXAMPLES)
    problem, batches = _law_run(abilities, examples)
    problem = replace(problem, noise_multiplier=0.0 if abilities.noise_off else QUIET)
    name = f"{len(examples)} steps"
    if drop is not None:
        batches = (*batches[:drop], _without_last(batches[drop]), *batches[drop + 1 :])
        name += f", without the last example of step {drop}"
    return Job(name, problem, batches, seed)


def _without_last(batch: BenchBatch) -> BenchBatch:
    reads: dict[str, Reads] = {}
    for name, r in batch.reads.items():
        kept = int(r.offsets[-2])
        weights = None if r.weights is None else r.weights[:kept]
        reads[name] = Reads(r.ids[:kept], r.offsets[:-1], r.readout[:-1], weights)
    dense = {name: value[:-1] for name, value in batch.dense.items()}
    return replace(batch, reads=reads, dense=dense, examples=len(batch) - 1)


def empty_job(abilities: Abilities, seed: int, *, after_reads: bool = False) -> Job:
    """A run of empty batches, nothing but noise; or of empty batches after one with examples."""
    problem, batches = _law_run(abilities, AFTER_READS if after_reads else (0,) * EMPTY_STEPS)
    name = f"{EMPTY_STEPS - 1} empty batches after a full one" if after_reads else f"{EMPTY_STEPS} empty batches"
    return Job(name, problem, batches, seed)


@cache
def _law_run(abilities: Abilities, examples: tuple[int, ...]) -> tuple[BenchProblem, tuple[BenchBatch, ...]]:
    """A problem and its batches, of so many examples each: the same in every repetition."""
    rng = np.random.default_rng(1)
    problem = _law_problem(rng, abilities, len(examples))
    rates = problem.learning_rates
    batches: list[BenchBatch] = []
    for n, rate in zip(examples, rates, strict=True):
        batches.append(_law_batch(rng, problem, abilities, n, rate, batches[-1] if batches else None))
    return problem, tuple(batches)


def rows_read(job: Job, table: str) -> np.ndarray:
    """Mask of the rows of a table that any batch reads."""
    mask = np.zeros(len(job.problem.tables[table]), dtype=bool)
    for batch in job.batches:
        mask[batch.reads[table].ids] = True
    return mask


def rows_read_running(job: Job, table: str) -> np.ndarray:
    """Mask of the rows of a table that two batches one after the other read."""
    mask = np.zeros(len(job.problem.tables[table]), dtype=bool)
    for one, other in pairwise(job.batches):
        mask[np.intersect1d(one.reads[table].ids, other.reads[table].ids)] = True
    return mask


def _weights(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return (0.1 * rng.standard_normal((rows, dim))).astype(np.float32)


def _law_problem(rng: np.random.Generator, abilities: Abilities, steps: int) -> BenchProblem:
    tables = {"item": _weights(rng, 512, DIM)}
    if abilities.several_tables:
        tables["user"] = _weights(rng, 256, DIM)
    return BenchProblem(
        tables,
        {"bias": _weights(rng, 1, 1024)[0]} if abilities.dense else {},
        pooling=dict.fromkeys(tables, Pooling.SUM),
        padding={},
        clip_norm=CLIP_NORM,
        noise_multiplier=1.25,
        expected_batch_size=_LAW_BATCH_SIZE,
        learning_rates=_LAW_RATES[:steps] if abilities.changing_rate else (1.0,) * steps,
    )


def _law_batch(
    rng: np.random.Generator,
    problem: BenchProblem,
    abilities: Abilities,
    examples: int,
    rate: float,
    before: BenchBatch | None,
) -> BenchBatch:
    reads: dict[str, Reads] = {}
    for name, table in problem.tables.items():
        readable = np.flatnonzero(np.arange(len(table)) * 7 % 13 < 6)  # scattered, a little less than half
        lengths = rng.integers(1, 5, examples) if abilities.bags else np.ones(examples, dtype=np.int64)
        bags = [rng.choice(readable, size=int(n), replace=False) for n in lengths]
        again = np.empty(0, dtype=np.int64) if before is None else np.unique(before.reads[name].ids)
        for bag, row in zip(bags[::2], rng.permutation(again), strict=False):  # read in two steps running
            bag[0] = bag[0] if row in bag else row
        ids = np.concatenate(bags) if bags else np.empty(0, dtype=np.int64)
        # Gradient norms from a third of C to three C: some examples are clipped and some are not.
        readout = (0.25 * CLIP_NORM * rng.uniform(0.2, 2.0) * rng.standard_normal((examples, DIM))).astype(np.float32)
        reads[name] = Reads(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), readout)
    dense = {
        name: (0.01 * CLIP_NORM * rng.standard_normal((examples, value.size))).astype(np.float32)
        for name, value in problem.dense.items()
    }
    return BenchBatch(reads, dense, rate, examples)


def _small_batch(case: Small, problem: BenchProblem) -> BenchBatch:
    nothing = Bag((1,), (0.0,) * _SMALL_DIM)  # a read without gradient, for tables that the input does not name
    reads: dict[str, Reads] = {}
    for name in problem.tables:
        bags = [_bag(example.get(name, nothing)) for example in case.examples]
        weighted = any(bag.weights is not None for bag in bags)
        weights = [w for bag in bags for w in (bag.weights or (1.0,) * len(bag.ids))]
        reads[name] = Reads(
            np.array([i for bag in bags for i in bag.ids], dtype=np.int64),
            np.cumsum([0, *(len(bag.ids) for bag in bags)]).astype(np.int64),
            np.array([bag.readout for bag in bags], dtype=np.float32).reshape(len(bags), _SMALL_DIM),
            np.array(weights, dtype=np.float32) if weighted else None,
        )
    dense = {
        name: np.array([_vector(example.get(name)) for example in case.examples], dtype=np.float32).reshape(
            len(case.examples), _SMALL_DENSE
        )
        for name in problem.dense
    }
    return BenchBatch(reads, dense, problem.learning_rates[0], len(case.examples))


def _bag(entry: Bag | tuple[float, ...]) -> Bag:
    assert isinstance(entry, Bag), "a table's entry is a Bag"
    return entry


def _vector(entry: Bag | tuple[float, ...] | None) -> Sequence[float]:
    assert not isinstance(entry, Bag), "a dense parameter's entry is a vector"
    return entry or (0.0,) * _SMALL_DENSE


_LONG = (1.0, -2.0, 0.5, 1.5)  # 2.7, more than five times the clip norm
_LONG_TOO = (-1.0, 0.5, 2.0, 0.0)
_SHORT = (0.1, 0.05, -0.1, 0.0)  # 0.15, below a third of the clip norm
_PART = (0.2, -0.2, 0.2, 0.2)  # 0.8 C: below the clip norm alone, above it with another part of that size
_DENSE_PART = (0.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def _item(*ids: int, readout: tuple[float, ...] = _LONG, weights: tuple[float, ...] | None = None) -> dict[str, Bag]:
    return {"item": Bag(ids, readout, weights)}


def _cases() -> Iterator[Small]:
    bags, repeats = frozenset({"bags"}), frozenset({"bags", "repeats"})
    yield Small("one long gradient", "ids [2]", (_item(2),))
    yield Small("one short gradient", "ids [2]", (_item(2, readout=_SHORT),))
    yield Small("a gradient of 10,000 C", "ids [2]", (_item(2, readout=(3000.0, 4000.0, 0.0, 0.0)),))
    yield Small("a batch smaller than expected", "3 examples where 8 are expected", (_item(2), _item(3), _item(2)),
                expected=8.0)  # fmt: skip
    yield Small("a batch larger than expected", "3 examples where 2 are expected",
                (_item(2), _item(3, readout=_SHORT), _item(4)), expected=2.0)  # fmt: skip
    yield Small("two examples of one row", "ids [2] and [2]", (_item(2), _item(2, readout=_LONG_TOO)))
    yield Small("two tables", "item [2], user [3], 0.8 C each",
                ({**_item(2, readout=_PART), "user": Bag((3,), _PART)},), frozenset({"several_tables"}))  # fmt: skip
    yield Small("a table and the dense part", "item [2] and bias, 0.8 C each",
                ({**_item(2, readout=_PART), "bias": _DENSE_PART},), frozenset({"dense"}))  # fmt: skip
    yield Small("distinct ids in a bag", "ids [1, 4, 5]", (_item(1, 4, 5),), bags)
    yield Small("an empty bag", "bags [2] and []", (_item(2), _item()), bags)
    yield Small("an id twice in a bag", "ids [3, 3]", (_item(3, 3),), repeats)
    yield Small("an id 20 times in a bag", "ids [3] * 20", (_item(*[3] * 20),), repeats)
    yield Small("an id twice beside another", "ids [3, 3, 5]", (_item(3, 3, 5), _item(5)), repeats)
    yield Small("an id twice, short gradient", "ids [3, 3]", (_item(3, 3, readout=_SHORT),), repeats)
    yield Small("mean of distinct ids", "mean of ids [1, 4, 5]", (_item(1, 4, 5, readout=_PART),),
                bags | {"mean"}, Pooling.MEAN)  # fmt: skip
    yield Small("mean with an id twice", "mean of ids [3, 3, 5]", (_item(3, 3, 5),), repeats | {"mean"}, Pooling.MEAN)
    yield Small("weights", "ids [1, 4], weights [3, 1]", (_item(1, 4, weights=(3.0, 1.0)),), bags | {"weights"})
    yield Small("weights of an id twice", "ids [3, 3], weights [2, -1.5]", (_item(3, 3, weights=(2.0, -1.5)),),
                repeats | {"weights"})  # fmt: skip
    yield Small("padding in a bag", "ids [0, 1], 0 is padding", (_item(0, 1),), bags | {"padding"}, padding=True)
    yield Small("mean with padding", "mean of ids [0] * 19 + [1], 0 is padding", (_item(*[0] * 19, 1),),
                repeats | {"mean", "padding"}, Pooling.MEAN, padding=True)  # fmt: skip
    yield Small("padding alone", "ids [0], 0 is padding", (_item(0), _item(1)), frozenset({"padding"}), padding=True)


_SMALL = tuple(_cases())
