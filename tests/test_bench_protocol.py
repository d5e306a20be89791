"""What the bench hands out and takes back: its signal against the reference, its files, and words for bad weights."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samelaw.cli.bench_own import LinearOracle, law_of
from samelaw.contract.bench import Abilities, BenchTrainer, TrainerFactory
from samelaw.contract.errors import InputError, SchemaError
from samelaw.contract.spec import Mode
from samelaw.contract.trace import Batch, Pooling
from samelaw.equivalence.bench import signal
from samelaw.equivalence.bench.conduct import Kind, Outcome, run_here
from samelaw.equivalence.bench.conform import conform, jobs_asked_for
from samelaw.equivalence.bench.files import read_job, read_outcome, write_job, write_outcome
from samelaw.equivalence.bench.problems import Bag, Job, Small, empty_job, law_job, small_inputs, small_job
from samelaw.reference.clipping import clip_factors, gradient_sums, square_norms
from samelaw.reference.reading import read_bags

sys.path.insert(0, str(Path(__file__).parent))  # neighbours, whatever way pytest imports test modules
from bench_trainers import EveryIterate, NumpyTrainer

ALL = Abilities.everything(iterates=True)


def reference_sum(job: Job) -> dict[str, np.ndarray]:
    """The clipped sum of a job's batch by reference/clipping.py."""
    problem, batch = job.problem, job.batches[0]
    oracle = LinearOracle(problem)
    oracle.batch = batch
    nothing = np.zeros((len(batch), 0), dtype=np.float32)
    found = oracle.gradients(
        Batch(nothing, (), nothing.sum(axis=1), np.arange(len(batch))),
        lambda lookup: read_bags(problem.tables[lookup.table], lookup),
    )
    order = sorted(problem.tables)
    factors = clip_factors(
        square_norms(found.lookups, found.pooled, found.dense_square_norms, order), problem.clip_norm
    )
    exponent = law_of(problem, Mode.REPLAY).contribution_exponent
    sums = gradient_sums(found.lookups, found.pooled, factors, exponent, order)
    total = signal.zeros(problem)
    for name, rows in sums.rows.items():
        total[name][rows] = sums.sums[name] * 2.0**exponent
    return total | {name: value.astype(np.float64) for name, value in oracle.clipped_dense_sum(factors).items()}


ids = st.lists(st.integers(0, 5), max_size=6).map(tuple)
vectors = st.tuples(*[st.floats(-2, 2, width=16)] * 4)


pooling = st.sampled_from(Pooling)
dense = st.tuples(*[st.floats(-1, 1, width=16)] * 8)
examples = st.lists(st.tuples(ids, vectors, dense), min_size=1, max_size=4)
some_weights = st.lists(st.floats(-2, 2, width=16), min_size=6, max_size=6) | st.none()


@given(pooling=pooling, padding=st.booleans(), weights=some_weights, examples=examples)
@settings(max_examples=60, deadline=None)
def test_the_expected_sum_is_the_reference_s(
    pooling: Pooling, padding: bool, weights: list[float] | None, examples: list[Any]
) -> None:
    def bag(chosen: tuple[int, ...], readout: tuple[float, ...]) -> Bag:
        weighted = weights is not None and pooling is Pooling.SUM
        return Bag(chosen, readout, tuple(weights[: len(chosen)]) if weighted else None)

    entries = tuple({"item": bag(chosen, readout), "bias": bias} for chosen, readout, bias in examples)
    job = small_job(Small("generated", "", entries, pooling=pooling, padding=padding), ALL, 0)
    expected, found = signal.clipped_sum(job.problem, job.batches[0]), reference_sum(job)
    for name, value in expected.items():
        # The reference clips to C (1 - 2^-20), truncates to 2^-33 C, and adds 2^-40 to squares; its dense sum is
        # rounded to float32: per example below 2e-6 C, with at most 4 examples and C = 0.5.
        assert np.abs(value - found[name]).max(initial=0) <= 4e-6


@pytest.mark.parametrize("case", small_inputs(ALL), ids=lambda case: case.name)
def test_no_small_input_moves_the_expected_sum_by_more_than_the_clip_norm(case: Small) -> None:
    job = small_job(case, ALL, 0)
    whole = signal.clipped_sum(job.problem, job.batches[0])
    for example in range(len(case.examples)):
        fewer = small_job(case.without(example), ALL, 0)
        less = signal.clipped_sum(fewer.problem, fewer.batches[0])
        assert signal.norm({n: whole[n] - less[n] for n in whole}) <= job.problem.clip_norm * (1 + 1e-12)


def test_the_noise_of_a_run_is_that_of_its_steps_in_squares() -> None:
    problem = law_job(ALL, 0).problem
    each = [signal.noise_std(problem, slice(t, t + 1)) for t in range(problem.steps)]
    assert signal.noise_std(problem) == pytest.approx(np.sqrt(np.sum(np.square(each))), rel=1e-12)
    assert each[0] == pytest.approx(0.5 * problem.noise_multiplier * problem.clip_norm / 12.0, rel=1e-12)


def test_drawn_batches_are_never_as_large_as_expected_and_half_of_the_rows_stay_idle() -> None:
    job = law_job(ALL, 0)
    assert all(len(batch) != job.problem.expected_batch_size for batch in job.batches)
    read = {int(i) for batch in job.batches for i in batch.reads["item"].ids}
    assert 100 < len(read) < 256


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job",
    [law_job(ALL, 7), empty_job(ALL, 8), *(small_job(case, ALL, 9) for case in small_inputs(ALL))],
    ids=lambda job: job.name,
)
def test_a_job_comes_back_from_its_folder_as_it_was(job: Job, tmp_path: Path) -> None:
    write_job(tmp_path, job)
    again = read_job(tmp_path)
    assert (again.name, again.seed, again.iterates) == (job.name, job.seed, job.iterates)
    assert again.problem.padding == job.problem.padding
    assert again.problem.pooling == job.problem.pooling
    for name, value in job.problem.tables.items():
        assert np.array_equal(again.problem.tables[name], value)
    for one, other in zip(job.batches, again.batches, strict=True):
        assert (one.learning_rate, len(one)) == (other.learning_rate, len(other))
        for name, reads in one.reads.items():
            for field in ("ids", "offsets", "readout", "weights"):
                before, after = getattr(reads, field), getattr(other.reads[name], field)
                assert (before is None) == (after is None)
                assert before is None or (np.array_equal(before, after) and before.dtype == after.dtype)
    assert_same(run_here(EveryIterate, job), run_here(EveryIterate, again))


def assert_same(one: Outcome, other: Outcome) -> None:
    assert one.failure is None
    assert one.release is not None
    assert other.release is not None
    for a, b in zip([one.release, *one.iterates], [other.release, *other.iterates], strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_an_outcome_comes_back_from_its_folder_as_it_was(tmp_path: Path) -> None:
    job = law_job(ALL, 7)
    outcome = run_here(EveryIterate, job)
    write_outcome(tmp_path, outcome)
    assert_same(outcome, read_outcome(tmp_path, job))


def _unlink(folder: Path) -> None:
    (folder / "release" / "bias.npy").unlink()


def _other_shape(folder: Path) -> None:
    np.save(folder / "release" / "item.npy", np.zeros((3, 4), dtype=np.float32))


def _float64(folder: Path) -> None:
    np.save(folder / "release" / "item.npy", np.zeros((512, 32)))


def _pickle(folder: Path) -> None:
    np.save(folder / "release" / "item.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _cut(folder: Path) -> None:
    path = folder / "release" / "item.npy"
    path.write_bytes(path.read_bytes()[:1000])


def _text(folder: Path) -> None:
    (folder / "release" / "item.npy").write_text("not an array")


def _empty(folder: Path) -> None:
    (folder / "release" / "item.npy").write_bytes(b"")


def _boast(folder: Path) -> None:
    """A header that asks for a terabyte."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (274877906944,), }".ljust(117) + b"\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    (folder / "release" / "item.npy").write_bytes(start + header + b"\0" * 64)


def _no_iterate(folder: Path) -> None:
    (folder / "iterates" / "3" / "user.npy").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_unlink, "release/bias.npy is missing"),
        (_other_shape, "'item' must have the shape (512, 32)"),
        (_float64, "'item' must be float32"),
        (_pickle, "release/item.npy is no .npy file of numbers"),
        (_cut, "release/item.npy is no .npy file of numbers"),
        (_text, "release/item.npy is no .npy file of numbers"),
        (_empty, "release/item.npy is no .npy file of numbers"),
        (_boast, "release/item.npy is no .npy file of numbers"),
        (_no_iterate, "iterates/3/user.npy is missing"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_damaged_outcome_is_malformed_and_the_file_is_named(damage: Any, words: str, tmp_path: Path) -> None:
    job = law_job(ALL, 7)
    write_outcome(tmp_path, run_here(EveryIterate, job))
    damage(tmp_path)
    failure = read_outcome(tmp_path, job).failure
    assert failure is not None
    assert failure.kind is Kind.MALFORMED
    assert words in failure.message


@pytest.mark.parametrize(
    ("key", "value"),
    [("clip_norm", 0), ("seed", -1), ("schema", "samelaw.bench_problem/2"), ("steps", []), ("extra", 1)],
)
def test_a_problem_that_does_not_match_its_schema_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    write_job(tmp_path, small_job(small_inputs(ALL)[0], ALL, 0))
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(SchemaError, match="bench_problem/1"):
        read_job(tmp_path)


def test_a_problem_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    write_job(tmp_path, small_job(small_inputs(ALL)[0], ALL, 0))
    path = tmp_path / "problem.json"
    path.write_text(path.read_text().replace("initial/item.npy", "../../item.npy"))
    with pytest.raises(SchemaError, match="initial"):
        read_job(tmp_path)


# --- bad weights and bad words ---------------------------------------------------------------------------------------


class Missing(NumpyTrainer):
    def release(self) -> Any:
        return {"item": self.now["item"]}


class Torn(NumpyTrainer):
    def release(self) -> Any:
        return [*self.now.values()]


class Wide(NumpyTrainer):
    def release(self) -> Any:
        return {name: value.astype(np.float64) for name, value in self.now.items()}


class Flat(NumpyTrainer):
    def release(self) -> Any:
        return {name: value.ravel() for name, value in self.now.items()}


class Listed(NumpyTrainer):
    def release(self) -> Any:
        return {name: value.tolist() for name, value in self.now.items()}


class Aliased(EveryIterate):
    """weights() lends the very arrays that the next step writes to."""

    def train_batch(self, batch: Any) -> None:
        before = dict(self.now)
        super().train_batch(batch)
        for name, value in before.items():
            value[...] = self.now[name]
            self.now[name] = value

    def weights(self) -> Any:
        return dict(self.now)


class Incomplete:
    abilities = Abilities()

    def __init__(self, problem: Any, seed: int) -> None: ...

    def train_batch(self, batch: Any) -> None: ...


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        (Missing, r"at release\(\): weights must hold exactly \['bias', 'item', 'user'\], got \['item'\]"),
        (Torn, "weights must be a mapping from names to NumPy arrays, got list"),
        (Wide, "'item' must be float32 as the problem's weights are, got float64"),
        (Flat, r"'item' must have the shape \(6, 4\) of the problem's weights, got \(24,\)"),
        (Listed, "'item' must be a NumPy array, got list"),
        (Aliased, r"'item' as returned by weights\(\) after step 0 has changed since: .* must return copies"),
        (Incomplete, r"the trainer must have a method weights\(\); Incomplete has none"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_weights_that_cannot_be_judged_are_an_error_with_the_name(trainer: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        conform(lambda job: run_here(trainer, job), trainer.abilities, runs=2)


class Vandal(NumpyTrainer):
    """It writes to everything that it is handed."""

    def train_batch(self, batch: Any) -> None:
        super().train_batch(batch)
        for reads in batch.reads.values():
            reads.readout[...] = 0
            reads.ids[...] = 0
        for table in self.problem.tables.values():
            table[...] = 0


def test_what_a_trainer_writes_to_its_inputs_does_not_reach_the_judge() -> None:
    found = conform(lambda job: run_here(Vandal, job), Vandal.abilities, runs=2)
    assert all(item.verdict.holds for item in found)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"bags": 1}, "bags must be True or False, got 1"),
        ({"noise": "mine"}, "noise must be 'own' or 'keyed', got 'mine'"),
        ({"repeats": True}, "repeats=True needs bags=True"),
        ({"bag": True}, "fields out of .*, got \\['bag'\\]"),
        ([1], "must be a JSON object"),
    ],
)
def test_abilities_that_are_none_are_refused(record: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Abilities.of(record, "abilities.json")


def test_abilities_survive_json() -> None:
    for abilities in (Abilities(), ALL, replace(ALL, noise="keyed")):
        assert Abilities.of(json.loads(json.dumps(abilities.to_json())), "here") == abilities


@pytest.mark.parametrize("options", [{"runs": 1}, {"seed": -1}, {"false_alarm": 0.0}, {"false_alarm": 0.5}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        conform(lambda job: run_here(NumpyTrainer, job), NumpyTrainer.abilities, **options)


def test_the_jobs_are_as_many_as_announced_and_every_seed_is_its_own() -> None:
    seen: list[int] = []
    abilities = NumpyTrainer.abilities
    conform(lambda job: run_here(NumpyTrainer, job), abilities, runs=3, done=lambda job: seen.append(job.seed))
    assert len(seen) == len(set(seen)) == jobs_asked_for(abilities, 3)


def test_the_protocols_hold_of_the_trainers_here() -> None:
    job = law_job(ALL, 0)
    assert isinstance(NumpyTrainer, TrainerFactory)
    assert isinstance(NumpyTrainer(job.problem, 0), BenchTrainer)
