"""Runs in which a fault shows, on real trainers: one lazy trainer with the fault, and what it leaves behind judged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samelaw.accounting.mechanism import mechanism_of
from samelaw.accounting.statement import PrivacyStatement, price
from samelaw.cli.definition import Definition
from samelaw.cli.models import Problem, readout_problem
from samelaw.cli.verify import kernels_normals
from samelaw.contract.errors import PrivacyError
from samelaw.contract.evidence import Disagreement, Evidence, Verdict
from samelaw.contract.ledger import Entry, Ledger, Spent, spent
from samelaw.contract.noise import NoiseKey, NoiseStream
from samelaw.contract.run import Transcript
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import ExecutionOptions, Mode, PrivacySpec
from samelaw.contract.trace import Batch, Feature
from samelaw.equivalence import claims, privacy
from samelaw.equivalence.addresses import addresses
from samelaw.equivalence.budget import Budget, Pending, Waiting
from samelaw.equivalence.faults import Fault, Scenario
from samelaw.equivalence.neighbours import neighbours
from samelaw.equivalence.noise_vectors import load_vectors
from samelaw.equivalence.recorded import recorded
from samelaw.equivalence.same_reads import same_reads
from samelaw.equivalence.sampler import measure_sampled
from samelaw.equivalence.scenarios import Population, edge_cases, joined, population
from samelaw.equivalence.scenarios import Scenario as Run
from samelaw.equivalence.two_runs import measure_unrelated
from samelaw.fast.dlrm import DLRM, bce_loss
from samelaw.fast.trainer import LazyTrainer
from samelaw.reference.noise import normals
from samelaw.reference.sampling import poisson_sample

ROWS, DIM = (480, 720, 240), 32  # more than one block of sixteen columns
FALLING_ROWS = (120, 180, 60)
PROBES = 12
NEIGHBOURS = 2
SAMPLED_STEPS, TRAINED_STEPS = 2048, 24
WIDE_ROWS, WIDE_DIM = 4096, 512  # 2^21 values: a scale off by 0.5 % is ten standard errors


Answers = dict[str, Callable[[], Evidence | Pending]]
"""Claims that a scenario can answer, by id; nothing is run before one is asked, nor judged before all are."""


@dataclass(frozen=True)
class Ran:
    """What one run of the lazy trainer left behind."""

    transcript: Transcript
    histories: dict[str, np.ndarray]
    entries: list[Entry]
    batches: list[np.ndarray]


class Bench:
    """Every scenario, with the twins that do not change from fault to fault kept.

    Args:
        seed: of the keys and of the models.
        folder: for the checkpoint of a resume.
        budget: of false alarms, which all tests of a trial share.
    """

    def __init__(self, seed: int, folder: Path, budget: Budget | None = None) -> None:
        torch.set_num_threads(1)  # runs this small are slower on several, and sums must not depend on their number
        self.seed, self.folder, self.budget = seed, folder, budget or Budget()
        self.key = NoiseKey.from_seed(seed)
        self._eager: dict[tuple[str, Mode, str], Transcript] = {}
        self._models: dict[str, tuple[Problem, Problem]] = {}
        self._prices: dict[Any, PrivacyStatement] = {}
        self._samples: dict[tuple[int, float, int], np.ndarray] = {}
        self._vectors = load_vectors()

    def evidence(
        self, scenario: Scenario, mode: Mode, fault: Fault | None, asked: Collection[str] | None = None
    ) -> list[Evidence]:
        """Run the scenario, with the fault planted, and judge the claims that it can answer.

        Args:
            asked: ids of claims; only what they need is run. All that the scenario can answer by default.
        """
        answers: dict[Scenario, Callable[[Mode, Fault | None], Answers]] = {
            Scenario.EDGE: self._edge,
            Scenario.FALLING: self._falling,
            Scenario.SAMPLED: self._sampled,
            Scenario.WIDE: self._wide,
            Scenario.TWO_RUNS: self._two_runs,
        }
        possible = answers[scenario](mode, fault)
        return self.budget.conclude([answer() for claim, answer in possible.items() if asked is None or claim in asked])

    # The scenarios.

    def _falling(self, mode: Mode, fault: Fault | None) -> Answers:
        """The edge cases on smaller tables, under a rate that falls: what they say of the noise."""
        of_noise = ("E1", "E2", "L1")
        return {claim: answer for claim, answer in self._edge(mode, fault, self.falling).items() if claim in of_noise}

    def _edge(self, mode: Mode, fault: Fault | None, edge: Run | None = None) -> Answers:
        edge = edge or self.edge
        model, readout = self._problems(edge)
        spec = replace(edge.spec, mode=mode)

        @cache
        def ran() -> Ran:
            return self._run(model, spec, edge.batches, self.key, fault, resume_at=edge.resume_at)

        @cache
        def probe() -> LazyTrainer:
            return self._trainer(model, spec, self.key, fault)

        def replay() -> Evidence:
            return claims.replay(self._twin(edge, mode, "model", model), ran().transcript)

        def bridge() -> Evidence:
            still = self._run(readout, spec, edge.batches, self.key, fault, resume_at=edge.resume_at)
            return claims.bridge(self._twin(edge, mode, "readout", readout), still.transcript, spec)

        def law() -> Pending:
            return claims.measure(ran().transcript, spec, normals=self._normals(spec))

        def sensitivity() -> Evidence:
            singles = edge.single_examples(PROBES)
            return claims.sensitivity(probe().gradient_sums, singles, clip_norm=spec.clip_norm)

        def apart() -> Evidence:
            linear = self._trainer(readout, spec, self.key, fault)
            several = sorted((batch for batch in edge.batches if len(batch) > 1), key=len)[:NEIGHBOURS]
            return neighbours(linear.gradient_sums, several, clip_norm=spec.clip_norm)

        def sums() -> Evidence:
            return same_reads(ran().transcript, Definition(model, spec, self.key, edge.batches))

        def settled() -> Pending:
            lazy, histories, entries = ran().transcript, ran().histories, ran().entries
            return Waiting(
                1,
                lambda share: claims.settled(
                    lazy.initial_tables, lazy.final_tables, spec,
                    step=len(lazy.steps), histories=histories, entries=entries, false_alarm=share,
                ),
            )  # fmt: skip

        def books() -> Evidence:
            keyed = self._keyed(spec, edge.examples)
            return recorded(spent(ran().entries), ran().transcript, spec, batches=ran().batches, keyed=keyed)

        def vectors() -> Evidence:
            return claims.noise_vectors(kernels_normals(probe().kernels), backend="cpu", vectors=self._vectors)

        twins: dict[Mode, Answers] = {Mode.REPLAY: {"E1": replay}, Mode.BRIDGE: {"E2": bridge}}
        return twins.get(mode, {}) | {
            "L1": law,
            "S1": sensitivity,
            "S2": apart,
            "C1": sums,
            "R1": settled,
            "A2": books,
            "N1": vectors,
            "N2": lambda: addresses(kernels_normals(probe().kernels)),
        }

    def _sampled(self, mode: Mode, fault: Fault | None) -> Answers:
        crowd = self.crowd
        examples, size = crowd.examples, crowd.expected_batch_size
        spec = PrivacySpec(
            clip_norm=0.5, noise_multiplier=1.0, sampling_rate=size / examples, expected_batch_size=size, delta=1e-4,
            schedule=Schedule.piecewise([8], [0.2, 0.1], steps=SAMPLED_STEPS), mode=mode,
        )  # fmt: skip
        problem = _model(crowd.features, crowd.dense_width, 8, examples, self.seed)
        keyed = self._keyed(spec, examples)

        def sampler() -> Evidence | Pending:
            trainer = self._trainer(problem, spec, self.key, fault)
            return measure_sampled(
                lambda step: trainer.sample(ahead=step), steps=SAMPLED_STEPS, examples=examples,
                sampling_rate=spec.sampling_rate, expected=keyed,
            )  # fmt: skip

        @cache
        def ran() -> Ran:
            trainer = self._trainer(problem, spec, self.key, fault)
            batches: list[np.ndarray] = []
            for _ in range(TRAINED_STEPS):
                batches.append(trainer.sample())
                trainer.train_batch(crowd.batch(batches[-1]))
            return _finished(trainer, batches)

        @cache
        def statement() -> dict[str, Any] | str:
            return self._priced(spent(ran().entries), fault)

        def price_holds() -> Evidence:
            said, account = statement(), spent(ran().entries)
            if isinstance(said, str):
                wrong = Disagreement("the ledger", "a run that can be priced", said)
                return Evidence("A1", privacy.A1, Verdict.REFUTED, said, "", wrong, (), {"steps": len(account.steps)})
            return claims.accounted(said, account, spec)

        def books() -> Evidence:
            said = statement()
            mechanism = None if isinstance(said, str) else said["mechanism"]
            return recorded(
                spent(ran().entries), ran().transcript, spec,
                batches=ran().batches, keyed=keyed, mechanism=mechanism,
            )  # fmt: skip

        return {"P1": sampler, "A1": price_holds, "A2": books}

    def _wide(self, mode: Mode, fault: Fault | None) -> Answers:
        """L1 without the key."""
        spec = replace(self.edge.spec, schedule=Schedule.constant(0.2, steps=2), mode=mode)

        def law() -> Pending:
            problem = readout_problem([Feature("wide", "wide", WIDE_ROWS)], 100, dim=WIDE_DIM, seed=self.seed)
            trainer = self._trainer(problem, spec, self.key, fault)
            for _ in range(spec.schedule.steps):
                trainer.empty_step()
            return claims.measure(_finished(trainer, []).transcript, spec)

        return {"L1": law}

    def _two_runs(self, mode: Mode, fault: Fault | None) -> Answers:
        """K1 and, of the first run, L1 without the key."""
        spec = replace(self.edge.spec, mode=mode)

        @cache
        def first() -> Transcript:
            return self._run(self.model, spec, self.edge.batches, self.key, fault).transcript

        def apart() -> Evidence | Pending:
            other, key = edge_cases(seed=1, rows=ROWS, dim=DIM), NoiseKey.from_seed(self.seed + 1)
            return measure_unrelated(first(), self._run(self.model, spec, other.batches, key, fault).transcript, spec)

        return {"L1": lambda: claims.measure(first(), spec), "K1": apart}

    # What they are made of.

    @cached_property
    def edge(self) -> Run:
        return edge_cases(rows=ROWS, dim=DIM)

    @cached_property
    def falling(self) -> Run:
        """The edge cases under a rate that falls to 1/4096 of what it was, as a decay to nearly nothing does.

        A step then adds 2^-24 of the variance of one before: prefix sums need more bits than float32 has.
        """
        run = edge_cases(rows=FALLING_ROWS, dim=DIM)
        rate = 0.4
        schedule = Schedule.piecewise([12], [rate, rate / 4096], steps=run.spec.schedule.steps)
        return replace(run, name="a rate that falls", spec=replace(run.spec, schedule=schedule))

    @cached_property
    def crowd(self) -> Population:
        """Examples that do not divide into whole batches, so that a pass over them leaves a partial one."""
        return population(examples=250, expected_batch_size=16.0)

    @cached_property
    def model(self) -> Problem:
        return self._problems(self.edge)[0]

    def _problems(self, run: Run) -> tuple[Problem, Problem]:
        """A small model and a linear readout on the tables of a run, the same ones whenever they are asked for."""
        if run.name not in self._models:
            model = _model(run.features, run.dense_width, DIM, run.examples, self.seed)
            self._models[run.name] = (model, readout_problem(run.features, run.examples, dim=DIM, seed=self.seed))
        return self._models[run.name]

    def _trainer(self, problem: Problem, spec: PrivacySpec, key: NoiseKey, fault: Fault | None) -> LazyTrainer:
        trainer = problem.lazy(spec, key, record=True, ledger=Ledger(), options=ExecutionOptions(threads=1))
        if fault is not None:
            fault.apply(trainer)
        return trainer

    def _run(
        self,
        problem: Problem,
        spec: PrivacySpec,
        batches: Sequence[Batch],
        key: NoiseKey,
        fault: Fault | None,
        *,
        resume_at: int | None = None,
    ) -> Ran:
        """Train on these batches, interrupted once, and release."""
        trainer = self._trainer(problem, spec, key, fault)
        before: Transcript | None = None
        for step, batch in enumerate(batches):
            if step == resume_at:
                checkpoint = self.folder / "resume.checkpoint"
                trainer.save_checkpoint(checkpoint)
                before = trainer.transcript
                trainer = self._trainer(problem, spec, key, fault)
                trainer.load_checkpoint(checkpoint)
                checkpoint.unlink()
            trainer.train_batch(batch)
        ran = _finished(trainer, [batch.indices for batch in batches])
        return ran if before is None else replace(ran, transcript=joined(before, ran.transcript))

    def _twin(self, run: Run, mode: Mode, name: str, problem: Problem) -> Transcript:
        """The eager twin of a run on given batches; it knows no fault, so one run serves all."""
        place = (run.name, mode, name)
        if place not in self._eager:
            eager = problem.eager(replace(run.spec, mode=mode), self.key)
            for batch in run.batches:
                eager.train_batch(batch)
            eager.release()
            assert eager.transcript is not None
            self._eager[place] = eager.transcript
        return self._eager[place]

    def _priced(self, account: Spent, fault: Fault | None) -> dict[str, Any] | str:
        """What the accountant says, with its fault if it has one; or why it refuses."""

        def remembered(account: Spent) -> PrivacyStatement:
            read = mechanism_of(account)
            if read not in self._prices:
                self._prices[read] = price(account)
            return self._prices[read]

        pricing = fault.pricing(remembered) if fault is not None and fault.pricing is not None else remembered
        try:
            return pricing(account).to_json()
        except PrivacyError as cause:
            return str(cause)

    def _normals(self, spec: PrivacySpec) -> Any:
        return partial(normals, NoiseStream(self.key, spec.rounds))

    def _keyed(self, spec: PrivacySpec, examples: int) -> Callable[[int], np.ndarray]:
        """What the key draws; the definition takes its time, so each step is drawn once."""
        stream = NoiseStream(self.key, spec.rounds)

        def drawn(step: int) -> np.ndarray:
            place = (step, spec.sampling_rate, examples)
            if place not in self._samples:
                self._samples[place] = poisson_sample(stream, *place)
            return self._samples[place]

        return drawn


def _finished(trainer: LazyTrainer, batches: list[np.ndarray]) -> Ran:
    """Settle, note the histories that a release drops, release."""
    trainer.settle()
    histories = {name: table.history.cpu().numpy().copy() for name, table in trainer.tables.items()}
    trainer.release()
    assert trainer.transcript is not None
    return Ran(trainer.transcript, histories, list(trainer.ledger.entries), batches)


def _model(features: Sequence[Feature], dense_width: int, dim: int, examples: int, seed: int) -> Problem:
    """A small DLRM whose tables are large enough to matter in every norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DLRM(features, dense_width, dim=dim, bottom=(16, dim), top=(16, 1))
        with torch.no_grad():
            for table in model.tables.values():
                table.weight.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
    return Problem(model, bce_loss, examples)
