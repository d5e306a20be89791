"""Eager DP-SGD: the textbook algorithm, with noise on every row of every table at every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Int64

from samelaw.contract.entry import as_count
from samelaw.contract.errors import InputError, LedgerError
from samelaw.contract.ledger import Ledger
from samelaw.contract.noise import NoiseStream, Purpose
from samelaw.contract.oracle import GradientOracle
from samelaw.contract.run import Release, StepRecord, Transcript
from samelaw.contract.spec import PrivacySpec
from samelaw.contract.trace import Batch, GradientSums, Lookup
from samelaw.reference.clipping import clip_factors, gradient_sums, square_norms
from samelaw.reference.lazy_schedule import Model, Read, eager_step
from samelaw.reference.noise import normals
from samelaw.reference.reading import read_bags
from samelaw.reference.rows import Counts, Rows, Values, Weights
from samelaw.reference.sampling import poisson_sample
from samelaw.reference.settlement import Settlement

Found: TypeAlias = tuple[GradientSums, np.ndarray | None, Values]
"""What a step found out: gradient sums, losses, and the values of the touched rows as they were read."""


class EagerTrainer:
    """DP-SGD over any number of tables and the dense parameters of a gradient oracle.

    Args:
        tables: name -> initial float32 weights (rows, dim); copied, never written to.
        oracle: the model without its tables; its dense arrays are the parameters and are updated in place.
        spec: the law of the run.
        stream: key and rounds of every draw.
        examples: N, size of the training set.
        padding: table -> its padding row, a constant of the model: it gets neither gradient nor noise.
        ledger: where to write what happens; a new one, kept in memory, by default.
        record: keep a Transcript of the run (private; memory grows with every step).

    Guarantees:
        E1  In replay, a lazy trainer that settles before every read and at release has the same bits everywhere:
            every read, every table, every dense parameter.
        E2  In bridge, it has paid every row the same integers.
        S1  One example moves the gradient sums of a step by at most C (see clipping.gradient_sums).
        G1  At every step, empty batches included, every row that is no padding row and every dense parameter gets
            noise of std s_t, drawn independently of the batch.

    Raises:
        InputError: a table is not a float32 matrix, the stream's rounds are not the spec's, a padding row does not
            exist.
        LedgerError: the ledger already holds a run.

    Source: Abadi et al., arXiv 1607.00133, Algorithm 1, with Poisson sampling and a constant divisor B.
    """

    def __init__(
        self,
        tables: Mapping[str, np.ndarray],
        oracle: GradientOracle,
        spec: PrivacySpec,
        stream: NoiseStream,
        *,
        examples: int,
        padding: Mapping[str, int] = {},
        ledger: Ledger | None = None,
        record: bool = False,
    ) -> None:
        _check(tables, padding, spec, stream)
        examples = as_count("examples", examples, "EagerTrainer", least=1)
        self.spec, self.stream, self.oracle, self.examples = spec, stream, oracle, examples
        self.padding = dict(padding)
        self.step_index = 0
        self._weights = Weights({name: tables[name] for name in sorted(tables)})
        self._tables = self._weights.arrays
        self._settlements = {
            name: Settlement(spec.mode, stream, spec.clock, table=number, dim=weights.shape[1])
            for number, (name, weights) in enumerate(self._tables.items())
        }
        self._everyone = {name: np.arange(len(weights)) for name, weights in self._tables.items()}
        self.transcript = Transcript(self.tables, self._dense()) if record else None
        self.ledger = Ledger() if ledger is None else ledger
        self._open_ledger()

    @property
    def tables(self) -> dict[str, Float32[np.ndarray, "_rows _dim"]]:
        """Present weights, as copies. Eager owes no noise, so they are always settled."""
        return {name: weights.copy() for name, weights in self._tables.items()}

    def sample(self) -> Int64[np.ndarray, "drawn"]:
        """Indices of the examples of the next step; possibly none."""
        return poisson_sample(self.stream, self.step_index, self.spec.sampling_rate, self.examples)

    def train_batch(self, batch: Batch) -> float | None:
        """One step of DP-SGD on exactly these examples: gradient first, then noise.

        Returns:
            The mean loss over the batch; None when it is empty.

        Raises:
            InputError: the schedule has no further step; a batch names a row that does not exist.
        """
        step = self.step_index
        if step >= self.spec.schedule.steps:
            raise InputError(
                f"the schedule ends after {self.spec.schedule.steps} steps, and step {step} was asked for: "
                "declare a longer schedule before the run"
            )

        def model(read: Read) -> tuple[Rows, GradientSums, Found]:
            sums, losses = self._sums_and_losses(batch, read)
            return sums.rows, sums, (sums, losses, read(sums.rows))

        sums, losses, reads = self._make_step(step, model)
        self._update_dense(step, sums)
        loss = None if losses is None else float(np.mean(losses, dtype=np.float64))

        keyed = np.array_equal(batch.indices, self.sample())
        self.ledger.append(
            "step",
            {
                "step": step,
                "examples": len(batch),
                "lr": self.spec.schedule.rate(step),
                "noise_std": self.spec.noise_multiplier * self.spec.clip_norm,
                "sampler": "keyed-poisson" if keyed else "external",
            },
        )
        if self.transcript is not None:
            self.transcript.steps.append(
                StepRecord(step, len(batch), sums.rows, reads, sums.sums, _copies(sums.dense), loss)
            )
        self.step_index = step + 1
        return loss

    def gradient_sums(self, batch: Batch) -> GradientSums:
        """Clipped sums of `batch` at the present weights; changes nothing."""
        return self._sums_and_losses(batch, self._weights.__getitem__)[0]

    def settle(self) -> None:
        """Nothing to do: eager owes nothing."""

    def release(self) -> Release:
        """Publish the present weights, as copies, and record it in the ledger."""
        entry = self.ledger.append("release", {"step": self.step_index})
        self.ledger.sync()
        if self.transcript is not None:
            self.transcript.final_tables = self.tables
            self.transcript.final_dense = self._dense()
        return Release(self.tables, self._dense(), self.step_index, entry.hash)

    def _make_step(self, step: int, model: Model[GradientSums, Found]) -> Found:
        """Tables after one step; what the model found."""
        return eager_step(self._weights, step, model, self._everyone, self._updated, self._settled)

    def _updated(self, step: int, rows: Rows, sums: GradientSums, values: Values) -> Values:
        """w = fl32(w - fl32(a_t * G)) for the rows that an example touched."""
        rate = self._rate(step)
        return {
            name: values[name] - rate * np.ldexp(sums.sums[name].astype(np.float32), sums.exponent) for name in rows
        }

    def _settled(self, rows: Rows, since: Counts, until: int, values: Values) -> Values:
        """The rows after each has paid for its own steps since, ..., until - 1. A padding row never owes anything."""
        paid: Values = {}
        for name, ids in rows.items():
            noisy = ids != self.padding.get(name, -1)
            paid[name] = values[name].copy()
            paid[name][noisy] = self._settlements[name].settle(
                values[name][noisy], ids[noisy], since[name][noisy], until
            )
        return paid

    def _update_dense(self, step: int, sums: GradientSums) -> None:
        """Gradient first, then noise, on every dense parameter."""
        rate, scale = self._rate(step), self.spec.clock.scale(step)
        for number, name in enumerate(sorted(self.oracle.dense)):
            parameter = self.oracle.dense[name]
            if name in sums.dense:
                parameter[...] = parameter - rate * sums.dense[name]
            noise = normals(self.stream, Purpose.DENSE, number, np.zeros(1, dtype=np.int64), step, dim=parameter.size)
            parameter[...] = parameter - scale * noise.reshape(parameter.shape)

    def _rate(self, step: int) -> np.float32:
        return np.float32(self.spec.schedule.rate(step) / self.spec.expected_batch_size)

    def _sums_and_losses(self, batch: Batch, read: Read) -> tuple[GradientSums, np.ndarray | None]:
        """The whole of one step's gradient; an empty batch has none, and the oracle is not asked."""
        exponent = self.spec.contribution_exponent
        if len(batch) == 0:
            return GradientSums(exponent, factors=np.zeros(0)), None
        found = self.oracle.gradients(batch, lambda lookup: self._pooled(lookup, read))
        lookups = [self._without_padding(lookup) for lookup in found.lookups]
        factors = clip_factors(
            square_norms(lookups, found.pooled, found.dense_square_norms, list(self._tables)),
            self.spec.clip_norm,
        )
        sums = gradient_sums(lookups, found.pooled, factors, exponent, list(self._tables))
        sums.dense = self.oracle.clipped_dense_sum(factors)
        return sums, found.losses

    def _pooled(self, lookup: Lookup, read: Read) -> Float32[np.ndarray, "bags dim"]:
        """Serve one table call of the oracle."""
        if lookup.table not in self._tables:
            raise InputError(f"the model reads table {lookup.table!r}; the trainer has {list(self._tables)}")
        lookup.check_rows(len(self._tables[lookup.table]))
        values = read({lookup.table: lookup.ids})[lookup.table]
        return read_bags(values, replace(lookup, ids=np.arange(lookup.ids.size)))

    def _without_padding(self, lookup: Lookup) -> Lookup:
        """The lookup that gradients flow through: a bag of one padding id becomes an empty bag."""
        if lookup.table not in self.padding:
            return lookup
        keep = lookup.ids != self.padding[lookup.table]
        lengths = np.diff(lookup.offsets)
        kept = np.array([int(np.count_nonzero(bag)) for bag in np.split(keep, lookup.offsets[1:-1])])
        if np.any((kept < lengths) & (lengths > 1)):
            raise InputError(
                f"a lookup of table {lookup.table!r} holds padding id {self.padding[lookup.table]} "
                "inside a longer bag: remove padding ids from bags before the trainer reads them"
            )
        return Lookup(
            lookup.table,
            lookup.ids[keep],
            np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
            lookup.example_of_bag,
            lookup.pooling,
            None if lookup.weights is None else lookup.weights[keep],
        )

    def _dense(self) -> dict[str, np.ndarray]:
        return _copies(self.oracle.dense)

    def _open_ledger(self) -> None:
        if self.ledger.entries:
            raise LedgerError(
                f"the ledger already holds {len(self.ledger.entries)} entries; the eager trainer does not resume, "
                "so give each run a ledger of its own"
            )
        self.ledger.append(
            "open",
            {
                "law": self.spec.to_json(),
                "law_digest": self.spec.digest(),
                "key_commitment": self.stream.key.commitment(),
                "key_origin": self.stream.key.origin,
                "tables": {name: [*w.shape, self.padding.get(name)] for name, w in self._tables.items()},
                "dense": {name: list(array.shape) for name, array in self.oracle.dense.items()},
                "examples": self.examples,
            },
        )


def _copies(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in arrays.items()}


def _check(
    tables: Mapping[str, np.ndarray],
    padding: Mapping[str, int],
    spec: PrivacySpec,
    stream: NoiseStream,
) -> None:
    for name, weights in tables.items():
        if weights.dtype != np.float32 or weights.ndim != 2 or 0 in weights.shape:
            raise InputError(
                f"table {name!r} must be a float32 matrix (rows, dim), got {weights.dtype} {weights.shape}"
            )
    for name, row in padding.items():
        if name not in tables or not 0 <= row < len(tables[name]):
            raise InputError(f"padding row {row} of table {name!r} does not exist")
    if stream.rounds != spec.rounds:
        raise InputError(f"the stream has {stream.rounds} ChaCha rounds and the spec says {spec.rounds}")
