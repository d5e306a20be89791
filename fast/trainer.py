"""DP-SGD that pays a row its noise when the row is read, and every row at release."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor, nn

from samelaw.contract.errors import (
    InputError,
    PrivacyError,
    ResumeError,
    UnsettledReleaseError,
    UnsupportedLayerError,
)
from samelaw.contract.ledger import Ledger
from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose
from samelaw.contract.run import Release, Transcript
from samelaw.contract.spec import ExecutionOptions, PrivacySpec
from samelaw.contract.trace import Batch, GradientSums
from samelaw.fast.bookkeeping import BatchGradients, Book
from samelaw.fast.clipping import clip_factors
from samelaw.fast.embedding_layers import TableGroup, find_tables, guard_model, replace_layers, restore_layers
from samelaw.fast.kernels import Kernels, LookupCall, NoisePlan
from samelaw.fast.layer_rules import check_shared_storage, refuse_autocast, refuse_tracing
from samelaw.fast.lookups import own_copy
from samelaw.fast.mixing import FirstBatches
from samelaw.fast.modes import training_modes
from samelaw.fast.oracle import LossFunction
from samelaw.fast.recording import dense_copies, note_step, table_copies
from samelaw.fast.resume import SavedRun, check_savable, save_run
from samelaw.fast.tables import LazyTable, aligned
from samelaw.fast.trainer_checks import (
    check_addresses,
    check_arguments,
    check_device,
    check_ledger,
    check_settled,
    open_ledger,
)


class LazyTrainer:
    """Trains an ordinary nn.Module under DP-SGD; its embedding tables owe their noise until they are read.

        trainer = LazyTrainer(model, spec, NoiseKey.from_os(), examples=len(data))
        for _ in range(spec.schedule.steps):
            drawn = trainer.sample()
            if len(drawn) == 0:
                trainer.empty_step()
            else:
                trainer.step(loss_per_example(model(data[drawn]), labels[drawn]))
        release = trainer.release()

    Args:
        model: taken over until release(). Its nn.EmbeddingBag and nn.Embedding layers get stand-ins on the same memory;
            its other trainable parameters are updated here and stop requiring gradients.
        spec: the law of the run.
        key: the secret that every draw comes from.
        examples: N, size of the training set that sample() draws from.
        loss_fn: (model, batch) -> (loss per example, logits); only train_batch and gradient_sums need it.
        options: speed and checks; never the law.
        ledger: where to write what happens; a new one, kept in memory, by default. One that already holds this run is
            resumed: load_checkpoint must come first.
        kernels: the backend; CPU by default.
        record: keep a Transcript (private; memory grows with every step).

    Guarantees:
        E1  In replay: every read, table and dense parameter has the bits of a reference.EagerTrainer on a TorchOracle
            of the same model, with the same key, batches, device and threads.
        E2  In bridge: every row has paid the integers that eager paid.
        L1  In aggregate: the noise in a row, whenever it is read, has the law of eager's.
        S1  One example moves the gradient sums of a step by at most C, all tables and dense parameters together.
        R1  Weights leave through release(), with every row settled.

    Raises:
        UnsupportedLayerError, MixedExamplesError: a layer or option that cannot be clipped, by its path.
        DataDependentRateError: an optimiser or scheduler was handed in as the schedule.
        AddressError: more tables, rows or columns than a noise address can name.

    Source: LazyDP, arXiv 2404.08847; Abadi et al., arXiv 1607.00133, Algorithm 1.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: PrivacySpec,
        key: NoiseKey,
        *,
        examples: int,
        loss_fn: LossFunction | None = None,
        options: ExecutionOptions | None = None,
        ledger: Ledger | None = None,
        kernels: Kernels | None = None,
        record: bool = False,
    ) -> None:
        examples = check_arguments(model, spec, examples)
        self._groups = find_tables(model)
        check_shared_storage(model, self._groups)
        self.model, self.spec, self.examples, self.loss_fn = model, spec, examples, loss_fn
        self.options = options or ExecutionOptions()
        self.kernels = kernels or _cpu_kernels(self.options)
        check_device(self._groups, model, self.device)
        self.stream = NoiseStream(key, spec.rounds)
        _start_threads(self.kernels, self.stream)
        self.step_index = 0
        self._drawn: dict[int, Int64[np.ndarray, "drawn"]] = {}
        self._announced: dict[str, Tensor] = {}
        self._interrupted = self._released = False
        replace_layers(model, self._groups, self)
        self._lift_guard = guard_model(model, self.device)
        try:
            self._book = Book(model, device=self.device, refuse_copy=self.refuse_copy)
            self._first_batches = FirstBatches(check_mixing=self.options.check_mixing)
            check_addresses(self._groups, self.dense, spec)
            self.tables: dict[str, LazyTable] = {
                group.name: self._table(number, group) for number, group in enumerate(self._groups)
            }
            self.ledger = Ledger() if ledger is None else ledger
            self._must_resume = open_ledger(self.ledger, self._opening())
            self.transcript = Transcript(table_copies(self.tables), dense_copies(self.dense)) if record else None
        except BaseException:
            if hasattr(self, "_book"):
                self._book.close()
            self._lift_guard()
            restore_layers(model, self._groups)
            raise

    @property
    def device(self) -> torch.device:
        return self.kernels.device

    @property
    def dense(self) -> dict[str, nn.Parameter]:
        """Trainable parameters other than tables, by sorted name."""
        return self._book.parameters

    # The loop.

    def sample(self, *, ahead: int = 0) -> Int64[np.ndarray, "drawn"]:
        """Indices, ascending, of the examples of the next step; possibly none. The same until that step is done.

        Args:
            ahead: 1 for the step after it, and so on: to look ahead. Beyond the last step nobody is drawn.
        """
        self._check_ready()
        step = self.step_index + ahead
        if ahead < 0:
            raise InputError(f"ahead must be >= 0, got {ahead}")
        if step >= self.spec.schedule.steps:
            return np.zeros(0, dtype=np.int64)
        if step not in self._drawn:
            self._drawn[step] = self.draw_sample(step)
        return self._drawn[step].copy()

    def step(self, losses: Float32[Tensor, "examples"]) -> None:
        """One step of DP-SGD on the examples of the last forward pass.

        If anything is wrong with the losses or with what the model did, the step raises before it has changed weights,
        ledger or step, and the forward pass is forgotten: the same step can be tried again.

        Args:
            losses: the loss of each example, not reduced; do not call backward on it.

        Raises:
            InputError: no vector, or not from the last forward pass; the schedule has ended.
            MixedExamplesError: an example's loss depends on another example.
            UnsupportedLayerError: see bookkeeping.
        """
        shape = getattr(losses, "shape", ())  # whatever was handed in: Book.check says what is wrong with it
        self._step(losses, keyed=self._was_drawn(shape[0] if shape else 0))

    def empty_step(self) -> None:
        """A step whose sample is empty: noise alone."""
        self._check_ready()
        if self._book.pending:
            raise InputError(
                "a training forward pass is on record, so this step is not empty; call step(losses) or discard()"
            )
        self._book.check_buffers()
        self._commit(0, {}, {}, torch.zeros(0, dtype=torch.float64, device=self.device), {}, self._was_drawn(0), None)

    def train_batch(self, batch: Batch) -> float | None:
        """Forward pass, loss and step on exactly these examples; returns the mean loss, None for an empty batch."""
        loss_fn = self._loss_fn()
        self._check_ready()
        keyed = np.array_equal(batch.indices, self.sample())
        if len(batch) == 0:
            self.empty_step()
            return None
        if not self.model.training:
            self.model.train()
        try:
            with torch.enable_grad():
                losses, _ = loss_fn(self.model, batch)
            if losses.shape != (len(batch),):
                raise InputError(
                    f"loss_fn must return one loss per example, ({len(batch)},), got {tuple(losses.shape)}"
                )
            self._step(losses, keyed=keyed)
        finally:
            self._book.discard()
        return _mean(losses)

    def look_ahead(self, ids: Mapping[str, Tensor | np.ndarray | Sequence[int]]) -> None:
        """Announce rows that the next batch will read, by table: they are settled together with the coming update.

        The same bits as without it in replay; with it, the next forward pass finds its rows settled. Padding ids are
        ignored. Until the next batch has been trained on, the tables then show which rows it will read: one more reason
        why unsettled weights are private.

        Raises:
            InputError: a table or row that does not exist.
        """
        self._check_ready()
        announced: dict[str, Tensor] = {}
        for name, rows in ids.items():
            if name not in self.tables:
                raise InputError(f"look_ahead: there is no table {name!r}; the tables are {list(self.tables)}")
            table = self.tables[name]
            flat = own_copy(torch.as_tensor(rows), self.device, torch.int64)
            if table.padding_idx is not None:
                flat = flat[flat != table.padding_idx]
            if flat.shape[0] and not (int(flat.min()) >= 0 and int(flat.max()) < table.rows):
                raise InputError(
                    f"look_ahead: table {name!r} has rows 0..{table.rows - 1}, got ids from {int(flat.min())} to "
                    f"{int(flat.max())}"
                )
            announced[name] = flat
        if self.options.look_ahead:
            self._announced.update(announced)

    def discard(self) -> None:
        """Forget a training forward pass that no step will be made for. Rows that it settled stay settled."""
        self._book.discard()

    @contextmanager
    def evaluation(self) -> Generator[nn.Module]:
        """The model in evaluation mode, without gradients: predictions between two steps.

        What is read is settled through the steps so far, and stays so. Replay keeps its bits; bridge keeps its path,
        and the weights up to float32 rounding; aggregate goes on along another path of the same law.
        """
        with training_modes(self.model, training=False), torch.no_grad():
            yield self.model

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """model(*args, **kwargs) inside evaluation()."""
        with self.evaluation() as model:
            return model(*args, **kwargs)

    def gradient_sums(self, batch: Batch) -> GradientSums:
        """Clipped integer sums for `batch` at the present weights; changes nothing, not even what rows owe."""
        self._check_usable()
        exponent = self.spec.contribution_exponent
        if len(batch) == 0:
            return GradientSums(exponent, factors=np.zeros(0))
        with self._probe():
            losses, _ = self._loss_fn()(self.model, batch)
            found = self._book.backward(losses)
            calls, pooled, factors = self._clip(found)
            sums = GradientSums(exponent, factors=factors.cpu().numpy())
            sums.dense = {name: value.cpu().numpy() for name, value in self._book.clipped_sums(found, factors).items()}
            for name in calls:
                rows, totals = self.kernels.gradient_sums(calls[name], pooled[name], factors, exponent)
                if rows.shape[0]:
                    sums.rows[name], sums.sums[name] = rows.cpu().numpy(), totals.cpu().numpy()
        return sums

    # The end.

    def settle(self) -> None:
        """Pay everything that every row owes for the steps so far, a chunk of rows at a time.

        Raises:
            UnsupportedLayerError: a buffer has changed, which would leave with the weights.
        """
        self._check_usable()
        self._book.check_buffers()
        paid = {
            name: table.settle_all(self.step_index, chunk=self.options.settle_chunk)
            for name, table in self.tables.items()
        }
        self.ledger.append("settle", {"step": self.step_index, "rows": paid})

    def release(self, *, write: Callable[[Release], object] | None = None) -> Release:
        """Settle every row, publish, and hand the model back: an ordinary nn.Module again, at its released weights.

        Args:
            write: stores the release; called when it is complete and just before the ledger records it. If it raises (a
                full disk), nothing was released, and release() may be called again.

        Returns:
            The weights (on a CPU the model's own memory, not a copy), and the ledger entry that records the release.

        Guarantees:
            R1  Every row that is no padding row holds the noise of every step that the ledger charges for.

        Raises:
            UnsettledReleaseError: a row still owes noise.
            UnsupportedLayerError: a buffer of the model has changed; it was put back.
            LedgerError: the ledger charges for other steps than the histories show.
        """
        self._check_usable()
        if self._must_resume:
            raise ResumeError("this run's ledger holds earlier entries; load_checkpoint must come before a release")
        self._book.discard()
        self.settle()
        for table in self.tables.values():
            check_settled(table, self.step_index)
        check_ledger(self.ledger.entries, self.tables, self.step_index)
        record = {"step": self.step_index}
        release = Release(
            {name: table.weights.cpu().numpy() for name, table in self.tables.items()},
            {name: parameter.detach().cpu().numpy() for name, parameter in self.dense.items()},
            self.step_index,
            self.ledger.next("release", record).hash,
        )
        if write is not None:
            write(release)
        self.ledger.append("release", record)
        self.ledger.sync()
        if self.transcript is not None:
            self.transcript.final_tables = table_copies(self.tables)
            self.transcript.final_dense = dense_copies(self.dense)
        self._hand_back()
        return release

    def save_checkpoint(self, path: str | Path) -> None:
        """Write all that is needed to go on later, except the key: a private file, replaced in one step.

        It holds unsettled weights and histories, which show who was read when. torch's random state on this device is
        in it too, so that dropout draws the same masks after a resume.
        """
        self._check_usable()
        if self._must_resume:
            raise ResumeError(
                "this run's ledger holds earlier entries; call load_checkpoint before saving, or the checkpoint of the "
                "run would be replaced by one of initial weights"
            )
        if self._book.pending:
            raise InputError("a training forward pass is on record; save checkpoints between steps, or discard() it")
        check_savable(self.tables, self.dense, self.model)
        self._book.check_buffers()
        self.ledger.append("checkpoint", {"step": self.step_index})
        self.ledger.sync()
        save_run(path, self.step_index, self.spec, self.stream, self.ledger, self.tables, self.dense, self.model)

    def load_checkpoint(self, path: str | Path) -> None:
        """Go on from a checkpoint of this run: the same bits as if it had never stopped.

        Raises:
            ResumeError: damaged, of another law or model, or not covered by the ledger; nothing has changed.
            NoiseKeyError: of another key; nothing has changed.
        """
        self._check_open()
        if any(entry.event == "release" for entry in self.ledger.entries):
            raise ResumeError(
                f"this run's ledger records a release; training on from {path} would lead to a second release of the "
                "same steps, which nobody would charge for. Start a new run with a new key"
            )
        saved = SavedRun(path, self.spec, self.stream, self.tables, self.dense, self.model)
        saved.reconcile(self.ledger)
        record = saved.record
        self.ledger.append("resume", {"step": record.step, "seq": record.ledger_seq, "head": record.ledger_head})
        self._book.discard()
        self._interrupted = True
        saved.restore()
        self._book.keep_buffers()
        self.step_index = record.step
        self._drawn, self._announced = {}, {}
        if self.transcript is not None:
            self.transcript.steps[:] = [s for s in self.transcript.steps if s.step < record.step]
        self._must_resume = self._interrupted = False

    # Seams: what one step is made of.

    def draw_sample(self, step: int) -> Int64[np.ndarray, "drawn"]:
        """Indices, ascending, of the examples that join the batch of `step`."""
        return self.kernels.poisson_sample(self.stream, step, self.spec.sampling_rate, self.examples).cpu().numpy()

    def square_norms(
        self,
        calls: Mapping[str, Sequence[LookupCall]],
        pooled: Mapping[str, Sequence[Float32[Tensor, "_ _"]]],
        dense_square_norms: Float64[Tensor, "examples"],
    ) -> Float64[Tensor, "examples"]:
        """Squared norm of each example's whole gradient: dense first, then the tables in sorted order."""
        norms = dense_square_norms
        for name in sorted(calls):
            norms = self.kernels.square_norms(calls[name], pooled[name], norms)
        return norms

    def clip_factors(self, square_norms: Float64[Tensor, "examples"]) -> Float64[Tensor, "examples"]:
        """min(1, C (1 - 2^-20) / norm); 0 where the norm is not a finite number."""
        return clip_factors(square_norms, self.spec.clip_norm)

    def pay_dense(self, step: int) -> None:
        """Pay the noise of `step` on every dense parameter."""
        scale = float(self.spec.clock.scale(step))
        for number, parameter in enumerate(self.dense.values()):
            flat = parameter.detach()
            whole = flat.is_contiguous()
            values = flat.view(-1) if whole else flat.reshape(-1)
            self.kernels.subtract_noise(values, self.stream, Purpose.DENSE, number, step, scale)
            if not whole:
                flat.copy_(values.view(flat.shape))

    # TableOwner: what the stand-in layers ask for.

    def read(self, table: str, call: LookupCall, examples: int, where: str) -> Float32[Tensor, "bags dim"]:
        """Settle and pool; in a training forward pass, record."""
        self._check_usable()
        refuse_tracing(where)
        refuse_autocast(self.device.type)
        value = self.tables[table].read(call, self.step_index)
        return self._book.note_read(table, where, call, examples, value) if self._book.recording else value

    def settled_weights(self, table: str) -> Float32[Tensor, "rows dim"]:
        """The whole table, if no row owes noise. Raises UnsettledReleaseError otherwise."""
        self._check_usable()
        if self._book.recording and self._book.open:
            raise UnsupportedLayerError(
                f"the weight of table {table!r} was read as a whole during a training pass (a tied output layer?): its "
                "gradient would be missed. Untie it: read rows through the layer, and give the output its own weights"
            )
        check_settled(self.tables[table], self.step_index)
        return self.tables[table].weights

    def refuse_copy(self) -> NoReturn:
        """A copy of a model in training, or of this trainer with its key, is no release."""
        for table in self.tables.values():
            check_settled(table, self.step_index)
        raise UnsettledReleaseError(
            "neither a trainer nor its model can be pickled or copied while the trainer owns the tables; call "
            "trainer.release() first (the model is an ordinary module again afterwards), or trainer.save_checkpoint "
            "to resume later"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self.refuse_copy()

    def __repr__(self) -> str:
        return (
            f"LazyTrainer(step={self.step_index} of {self.spec.schedule.steps}, mode={self.spec.mode}, "
            f"tables={len(self.tables)}, dense={len(self.dense)}, kernels={self.kernels.name})"
        )

    # Inside.

    def _step(self, losses: Tensor, *, keyed: bool) -> None:
        """Everything that can go wrong first, then `_commit`."""
        self._check_ready()
        refuse_autocast(self.device.type)
        try:
            found = self._first_batches.backward(self._book, losses)
            calls, pooled, factors = self._clip(found)
            dense = self._book.clipped_sums(found, factors)
        finally:
            self._book.discard()
        self._commit(losses.shape[0], calls, pooled, factors, dense, keyed, losses)

    def _clip(
        self, found: BatchGradients
    ) -> tuple[dict[str, list[LookupCall]], dict[str, list[Tensor]], Float64[Tensor, "examples"]]:
        calls, pooled = found.by_table()
        return calls, pooled, self.clip_factors(self.square_norms(calls, pooled, found.dense_square_norms))

    def _commit(
        self,
        examples: int,
        calls: dict[str, list[LookupCall]],
        pooled: dict[str, list[Tensor]],
        factors: Float64[Tensor, "examples"],
        dense: dict[str, Tensor],
        keyed: bool,
        losses: Tensor | None,
    ) -> None:
        """Charge the step, then make it. Charging first means that no step is ever made for free."""
        step, spec = self.step_index, self.spec
        record = None
        if self.transcript is not None:
            record = note_step(
                step, examples, self.tables, self.kernels, calls, pooled, factors, dense,
                None if losses is None else _mean(losses),
            )  # fmt: skip
        # An interrupt may come anywhere from here on; only an append that failed has changed nothing.
        self._interrupted = True
        try:
            self.ledger.append(
                "step",
                {
                    "step": step,
                    "examples": examples,
                    "lr": spec.schedule.rate(step),
                    "noise_std": spec.noise_multiplier * spec.clip_norm,
                    "sampler": "keyed-poisson" if keyed else "external",
                },
            )
        except Exception:
            self._interrupted = False
            raise
        rate = float(np.float32(spec.schedule.rate(step) / spec.expected_batch_size))
        for name in calls:
            self.tables[name].update(calls[name], pooled[name], factors, rate)
        for name, gradient in dense.items():
            self.dense[name].detach().sub_(gradient.mul_(rate))  # two roundings: mul, then sub
        self.pay_dense(step)
        self.step_index = step + 1
        self._drawn.pop(step, None)
        self._interrupted = False
        if self.transcript is not None and record is not None:
            self.transcript.steps.append(record)
        announced, self._announced = self._announced, {}
        for name, ids in announced.items():
            self.tables[name].settle_rows(ids, self.step_index)

    def _was_drawn(self, examples: int) -> bool:
        """Whether sample() was asked for this step and drew this many examples."""
        return self.step_index in self._drawn and len(self._drawn[self.step_index]) == examples

    @contextmanager
    def _probe(self) -> Generator[None]:
        """A training forward pass that changes nothing: payments, modes and random state are put back."""
        cuda = [self.device] if self.device.type == "cuda" else []
        for table in self.tables.values():
            table.watch()
        try:
            with (
                torch.random.fork_rng(devices=cuda),
                self._book.aside(),
                torch.enable_grad(),
                training_modes(self.model, training=True),
            ):
                yield
        finally:
            for table in self.tables.values():
                table.restore()

    def _table(self, number: int, group: TableGroup) -> LazyTable:
        group.weight.data = aligned(group.weight.detach())
        return LazyTable(
            group.name,
            number,
            group.weight.detach(),
            padding_idx=group.padding_idx,
            plan=NoisePlan(self.spec.mode, self.stream, self.spec.clock, number, group.weight.shape[1]),
            kernels=self.kernels,
            steps=self.spec.schedule.steps,
            exponent=self.spec.contribution_exponent,
        )

    def _opening(self) -> dict[str, Any]:
        return {
            "law": self.spec.to_json(),
            "law_digest": self.spec.digest(),
            "key_commitment": self.stream.key.commitment(),
            "key_origin": self.stream.key.origin,
            "tables": {name: [table.rows, table.dim, table.padding_idx] for name, table in self.tables.items()},
            "dense": {name: list(parameter.shape) for name, parameter in self.dense.items()},
            "examples": self.examples,
        }

    def _hand_back(self) -> None:
        """The original layers on the trained memory; histories are gone, and so is the right to train on."""
        self._book.close()
        self._lift_guard()
        restore_layers(self.model, self._groups)
        for parameter in self.dense.values():
            parameter.requires_grad_(True)
        for table in self.tables.values():
            table.history = table.history.new_empty(0)
        self._announced, self._drawn, self._released = {}, {}, True

    def _loss_fn(self) -> LossFunction:
        if self.loss_fn is None:
            raise InputError(
                "a loss function is needed: LazyTrainer(..., loss_fn=lambda model, batch: (losses, logits))"
            )
        return self.loss_fn

    def _check_open(self) -> None:
        if self._released:
            raise PrivacyError(
                "this trainer has released its weights and dropped its histories; nothing may be trained on top of "
                "them under the same ledger. Start a new run"
            )

    def _check_usable(self) -> None:
        self._check_open()
        if self._interrupted or any(table.interrupted for table in self.tables.values()):
            raise ResumeError(
                f"step {self.step_index} was interrupted while it wrote: weights and histories may disagree. Call "
                "load_checkpoint, or start a new run"
            )

    def _check_ready(self) -> None:
        """Whether another step may begin."""
        self._check_usable()
        if self._must_resume:
            raise ResumeError(
                f"the ledger holds {len(self.ledger.entries)} entries of this run; call load_checkpoint before the "
                "next step, or give a new run a ledger of its own"
            )
        if self.step_index >= self.spec.schedule.steps:
            raise InputError(
                f"the schedule ends after {self.spec.schedule.steps} steps, all of which have been run; declare a "
                "longer one before the run"
            )


def _cpu_kernels(options: ExecutionOptions) -> Kernels:
    from samelaw.fast.cpu import CpuKernels  # numba is slow to import, and a GPU run never needs it

    return CpuKernels(options.threads)


def _start_threads(kernels: Kernels, stream: NoiseStream) -> None:
    """Let a backend start its threads now, and put torch's number of threads back.

    numba's OpenMP layer sets the number for the whole process when it starts. Were that to happen in the middle of the
    first step, torch would sum in another order from there on, and losses and dense weights would not be
    reproducible.
    """
    before = torch.get_num_threads()
    kernels.poisson_sample(stream, 0, 0.5, 1)
    torch.set_num_threads(before)


def _mean(losses: Tensor) -> float:
    return float(np.mean(losses.detach().cpu().numpy(), dtype=np.float64))
