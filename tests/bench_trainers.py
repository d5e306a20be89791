"""A correct trainer in NumPy, and the same with one bug at a time: what tests/test_bench_faults.py plants."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from samelaw.contract.bench import Abilities, BenchBatch, BenchProblem
from samelaw.contract.trace import Pooling

Arrays = dict[str, np.ndarray]


class NumpyTrainer:
    """DP-SGD, one example at a time. Every method is a place for a bug."""

    abilities = Abilities.everything()

    def __init__(self, problem: BenchProblem, seed: int) -> None:
        self.problem = problem
        self.now: Arrays = {name: value.copy() for name, value in {**problem.tables, **problem.dense}.items()}
        self.rng = self.generator(seed)
        self.steps = 0

    def generator(self, seed: int) -> np.random.Generator:
        return np.random.default_rng(seed)

    def train_batch(self, batch: BenchBatch) -> None:
        sums = {name: np.zeros(value.shape) for name, value in self.now.items()}
        for example in range(len(batch)):
            for name, gradient in self.clip(self.gradient(batch, example)).items():
                sums[name] += gradient
        scale = batch.learning_rate / self.divisor(batch)
        for name, value in self.now.items():
            noise = self.noise(name, batch)
            if name in self.problem.padding:
                noise[self.problem.padding[name]] = 0
            self.now[name] = (value - scale * (sums[name] + noise)).astype(np.float32)
        self.steps += 1

    def gradient(self, batch: BenchBatch, example: int) -> Arrays:
        found = {name: np.zeros(value.shape) for name, value in self.now.items()}
        for name, reads in batch.reads.items():
            bag = reads.bag(example)
            ids, weights = reads.ids[bag], np.ones(bag.stop - bag.start)
            if reads.weights is not None:
                weights = reads.weights[bag].astype(float)
            kept = ids != self.problem.padding.get(name, -1)
            ids, weights = ids[kept], weights[kept]
            if self.problem.pooling[name] is Pooling.MEAN and ids.size:
                weights = weights / self.bag_size(kept)
            self.scatter(found[name], ids, weights, reads.readout[example])
        for name, value in batch.dense.items():
            found[name] += value[example]
        return found

    def bag_size(self, kept: np.ndarray) -> int:
        return int(kept.sum())

    def scatter(self, table: np.ndarray, ids: np.ndarray, weights: np.ndarray, readout: np.ndarray) -> None:
        np.add.at(table, ids, weights[:, None] * readout)

    def clip(self, gradient: Arrays) -> Arrays:
        norm = np.sqrt(sum(float((g**2).sum()) for g in gradient.values()))
        factor = min(1.0, self.problem.clip_norm / norm) if norm > 0 else 1.0
        return {name: factor * g for name, g in gradient.items()}

    def divisor(self, batch: BenchBatch) -> float:
        return self.problem.expected_batch_size

    def noise(self, name: str, batch: BenchBatch) -> np.ndarray:
        return self.sigma() * self.draw(self.now[name].shape)

    def sigma(self) -> float:
        return self.problem.noise_multiplier * self.problem.clip_norm

    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.standard_normal(shape)

    def weights(self) -> Mapping[str, np.ndarray]:
        return {name: value.copy() for name, value in self.now.items()}

    def release(self) -> Mapping[str, np.ndarray]:
        return self.weights()


class NoNoiseOnIdleRows(NumpyTrainer):
    def noise(self, name: str, batch: BenchBatch) -> np.ndarray:
        noise = super().noise(name, batch)
        if name in batch.reads:
            noise[np.setdiff1d(np.arange(len(noise)), batch.reads[name].ids)] = 0
        return noise


class SigmaFivePercentLow(NumpyTrainer):
    def sigma(self) -> float:
        return 0.95 * super().sigma()


class NoClipNormInNoise(NumpyTrainer):
    def sigma(self) -> float:
        return self.problem.noise_multiplier


class ClipPerTable(NumpyTrainer):
    def clip(self, gradient: Arrays) -> Arrays:
        return {name: super(ClipPerTable, self).clip({name: g})[name] for name, g in gradient.items()}


class DenseOutsideTheNorm(NumpyTrainer):
    def clip(self, gradient: Arrays) -> Arrays:
        tables = super().clip({name: g for name, g in gradient.items() if name in self.problem.tables})
        return {**tables, **{name: g for name, g in gradient.items() if name not in self.problem.tables}}


class ClipAtTwiceTheNorm(NumpyTrainer):
    def clip(self, gradient: Arrays) -> Arrays:
        return {name: 2 * g for name, g in super().clip({n: g / 2 for n, g in gradient.items()}).items()}


class DuplicatesOnce(NumpyTrainer):
    def scatter(self, table: np.ndarray, ids: np.ndarray, weights: np.ndarray, readout: np.ndarray) -> None:
        table[ids] += weights[:, None] * readout


class WeightsIgnored(NumpyTrainer):
    def scatter(self, table: np.ndarray, ids: np.ndarray, weights: np.ndarray, readout: np.ndarray) -> None:
        super().scatter(table, ids, np.ones_like(weights) if (weights > 1).any() else weights, readout)


class PaddingInTheMean(NumpyTrainer):
    def bag_size(self, kept: np.ndarray) -> int:
        return kept.size


class NoiseOnPadding(NumpyTrainer):
    def train_batch(self, batch: BenchBatch) -> None:
        super().train_batch(batch)
        for name, row in self.problem.padding.items():
            self.now[name][row] += np.float32(self.sigma()) * self.draw(self.now[name][row].shape).astype(np.float32)


class BatchSizeFromTheData(NumpyTrainer):
    def divisor(self, batch: BenchBatch) -> float:
        return max(1, len(batch))


class SameSeedEveryRun(NumpyTrainer):
    def generator(self, seed: int) -> np.random.Generator:
        return np.random.default_rng(42)


class EveryIterate(NumpyTrainer):
    """The correct trainer, which publishes after every step."""

    abilities = Abilities.everything(iterates=True)


class SameNoiseEveryStep(EveryIterate):
    def noise(self, name: str, batch: BenchBatch) -> np.ndarray:
        number = sorted(self.now).index(name)
        return self.sigma() * np.random.default_rng([self.seed, number]).standard_normal(self.now[name].shape)

    def generator(self, seed: int) -> np.random.Generator:
        self.seed = seed
        return super().generator(seed)


class SameNoiseInEveryTable(NumpyTrainer):
    def noise(self, name: str, batch: BenchBatch) -> np.ndarray:
        if name in self.problem.dense:
            return super().noise(name, batch)
        return self.sigma() * np.random.default_rng([self.seed, self.steps]).standard_normal(self.now[name].shape)

    def generator(self, seed: int) -> np.random.Generator:
        self.seed = seed
        return super().generator(seed)


class SameNoiseInEveryColumn(NumpyTrainer):
    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(super().draw((*shape[:-1], 1)), shape).copy()


class EmptyBatchIsSilent(NumpyTrainer):
    def train_batch(self, batch: BenchBatch) -> None:
        if len(batch):
            super().train_batch(batch)


class UniformNoise(NumpyTrainer):
    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.uniform(-np.sqrt(3), np.sqrt(3), shape)


class LaplaceNoise(NumpyTrainer):
    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.laplace(0, np.sqrt(0.5), shape)


class NoDenseNoise(NumpyTrainer):
    def noise(self, name: str, batch: BenchBatch) -> np.ndarray:
        return super().noise(name, batch) * (name in self.problem.tables)


class LazyAndOffByOne(NumpyTrainer):
    """Settles a step too few at every read, and all but the last step at release."""

    abilities = Abilities.everything()

    def __init__(self, problem: BenchProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self.owed = {name: np.zeros(len(table)) for name, table in problem.tables.items()}
        self.last = 0.0

    def train_batch(self, batch: BenchBatch) -> None:
        for name, reads in batch.reads.items():
            self.settle(name, np.unique(reads.ids))
        super().train_batch(batch)
        self.last = (batch.learning_rate * self.sigma() / self.problem.expected_batch_size) ** 2
        for name in self.owed:
            self.owed[name] += self.last

    def noise(self, name: str, batch: BenchBatch) -> np.ndarray:
        return super().noise(name, batch) if name in self.problem.dense else np.zeros(self.now[name].shape)

    def settle(self, name: str, rows: np.ndarray) -> None:
        rows = rows[rows != self.problem.padding.get(name, -1)]
        std = np.sqrt(np.maximum(0, self.owed[name][rows] - self.last))
        self.now[name][rows] -= (std[:, None] * self.draw((len(rows), self.now[name].shape[1]))).astype(np.float32)
        self.owed[name][rows] = 0

    def release(self) -> Mapping[str, np.ndarray]:
        for name, table in self.problem.tables.items():
            self.settle(name, np.arange(len(table)))
        return self.weights()


class LazyThatPublishesEarly(LazyAndOffByOne):
    """Settled correctly, but it says that every iterate may be published."""

    abilities = Abilities.everything(iterates=True)

    def settle(self, name: str, rows: np.ndarray) -> None:
        self.last = 0.0
        super().settle(name, rows)


class LazyAndHotRowsOffByOne(LazyAndOffByOne):
    """A row that two steps running read is settled a step short; every other row as it should be."""

    def train_batch(self, batch: BenchBatch) -> None:
        before, self.just_read = getattr(self, "just_read", {}), {n: np.unique(r.ids) for n, r in batch.reads.items()}
        super().train_batch(batch)
        for name, rows in self.just_read.items():
            self.owed[name][np.intersect1d(rows, before.get(name, rows[:0]))] -= self.last

    def settle(self, name: str, rows: np.ndarray) -> None:
        last, self.last = self.last, 0.0
        super().settle(name, rows)
        self.last = last


class ClipsTheFirstStepAlone(NumpyTrainer):
    def clip(self, gradient: Arrays) -> Arrays:
        return super().clip(gradient) if self.steps == 0 else gradient


class GradientsAreNeverZeroed(NumpyTrainer):
    """The gradients of a step are still there in the next."""

    kept: Arrays

    def train_batch(self, batch: BenchBatch) -> None:
        kept = getattr(self, "kept", {})
        self.kept = {name: np.zeros(value.shape) for name, value in self.now.items()}
        for example in range(len(batch)):
            for name, gradient in self.clip(self.gradient(batch, example)).items():
                self.kept[name] += gradient
        scale = batch.learning_rate / self.divisor(batch)
        super().train_batch(batch)
        for name, value in kept.items():
            self.now[name] = (self.now[name] - scale * value).astype(np.float32)


class LearningRateOfTheStepBefore(NumpyTrainer):
    """Of the gradients; the noise has the right one."""

    def clip(self, gradient: Arrays) -> Arrays:
        rates = self.problem.learning_rates
        factor = rates[max(0, self.steps - 1)] / rates[self.steps]
        return {name: factor * g for name, g in super().clip(gradient).items()}


class LastOfALargeBatchUnclipped(NumpyTrainer):
    """A batch that falls into microbatches of four: the last one is not clipped."""

    def train_batch(self, batch: BenchBatch) -> None:
        self.left = len(batch) if len(batch) > 4 else 0
        super().train_batch(batch)

    def clip(self, gradient: Arrays) -> Arrays:
        self.left -= 1
        return gradient if self.left == 0 else super().clip(gradient)


class EmptyBatchAfterAFullOneIsSilent(NumpyTrainer):
    """It steps again with what the batch before left, which an optimiser that was reset has not."""

    def train_batch(self, batch: BenchBatch) -> None:
        full, self.full = getattr(self, "full", False), len(batch) > 0
        if self.full or not full:
            super().train_batch(batch)
        else:
            self.steps += 1


class NoiseInHalfPrecision(NumpyTrainer):
    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        return super().draw(shape).astype(np.float16).astype(np.float64)


class NoiseInBrainFloat(NumpyTrainer):
    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        bits = super().draw(shape).astype(np.float32).view(np.uint32)
        return (bits + 0x8000 & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


class LastRowHasHalfTheNoise(NumpyTrainer):
    def noise(self, name: str, batch: BenchBatch) -> np.ndarray:
        noise = super().noise(name, batch)
        noise[-1] *= 0.5 if name in self.problem.tables else 1.0
        return noise


class LastColumnHasLessNoise(NumpyTrainer):
    def noise(self, name: str, batch: BenchBatch) -> np.ndarray:
        noise = super().noise(name, batch)
        if name in self.problem.tables:
            noise[:, -1] *= 0.75
        return noise


class OneTableFivePercentLow(NumpyTrainer):
    def noise(self, name: str, batch: BenchBatch) -> np.ndarray:
        return super().noise(name, batch) * (0.95 if name == "user" else 1.0)


class NotFinite(NumpyTrainer):
    def release(self) -> Mapping[str, np.ndarray]:
        released = dict(super().release())
        if self.problem.padding:
            released["item"][1, 1] = np.nan
        return released


class CrashesOnMeans(NumpyTrainer):
    def bag_size(self, kept: np.ndarray) -> int:
        raise ZeroDivisionError("mean of nothing")


CAUGHT_BY: Mapping[type[NumpyTrainer], tuple[str, ...]] = {
    NoNoiseOnIdleRows: ("B5", "B4", "B7"),
    SigmaFivePercentLow: ("B4", "B5", "B7"),
    NoClipNormInNoise: ("B4", "B5", "B6", "B7"),
    ClipPerTable: ("B3", "B2"),
    DenseOutsideTheNorm: ("B3", "B2"),
    ClipAtTwiceTheNorm: ("B3", "B2"),
    DuplicatesOnce: ("B2",),
    WeightsIgnored: ("B2",),
    PaddingInTheMean: ("B2",),
    NoiseOnPadding: ("B9",),
    BatchSizeFromTheData: ("B2",),
    SameSeedEveryRun: ("B8",),
    SameNoiseEveryStep: ("B10", "B4", "B5"),
    SameNoiseInEveryTable: ("B8",),
    SameNoiseInEveryColumn: ("B8",),
    EmptyBatchIsSilent: ("B7",),
    UniformNoise: ("B4", "B5"),
    LaplaceNoise: ("B4", "B5"),
    NoDenseNoise: ("B6",),
    LazyAndOffByOne: ("B4", "B5", "B7"),
    LazyThatPublishesEarly: ("B10",),
    LazyAndHotRowsOffByOne: ("B4",),
    ClipsTheFirstStepAlone: ("B2", "B3"),
    GradientsAreNeverZeroed: ("B2",),
    LearningRateOfTheStepBefore: ("B2",),
    LastOfALargeBatchUnclipped: ("B2", "B3"),
    EmptyBatchAfterAFullOneIsSilent: ("B7",),
    NoiseInHalfPrecision: ("B5",),
    NoiseInBrainFloat: ("B5",),
    LastRowHasHalfTheNoise: ("B4",),
    LastColumnHasLessNoise: ("B4", "B5"),
    OneTableFivePercentLow: ("B5",),
    NotFinite: ("B1",),
    CrashesOnMeans: ("B1",),
}
