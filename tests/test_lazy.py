"""The lazy trainer's definition: eager's bits, nothing owed at release, and a pause that leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest

from samelaw.contract.errors import ResumeError
from samelaw.contract.ledger import spent
from samelaw.contract.noise import NoiseKey, NoiseStream
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import Mode, PrivacySpec
from samelaw.contract.trace import Batch, Feature, FeatureBags, Pooling
from samelaw.reference.dlrm import NumpyDLRM
from samelaw.reference.eager import EagerTrainer
from samelaw.reference.lazy import LazyTrainer

EXAMPLES, STEPS, ROWS, DIM = 40, 8, 14, 4
STREAM = NoiseStream(NoiseKey.from_seed(3))
FEATURES = [
    Feature("seen", "item", ROWS, Pooling.MEAN), Feature("wanted", "item", ROWS), Feature("who", "user", ROWS // 2),
]  # fmt: skip


def spec_of(mode: Mode) -> PrivacySpec:
    return PrivacySpec(
        clip_norm=0.5, noise_multiplier=0.7, sampling_rate=0.1, expected_batch_size=4.0, delta=1e-5, mode=mode,
        schedule=Schedule.warmup_cosine(0.5, steps=STEPS, warmup=3, final=0.1),
    )  # fmt: skip


def trainer_of(kind: type[EagerTrainer], mode: Mode = Mode.REPLAY, *, padding: bool = False, record: bool = True):
    rng = np.random.default_rng(5)
    tables = {
        f"tables.{t}": rng.normal(size=(n, DIM)).astype(np.float32) for t, n in (("item", ROWS), ("user", ROWS // 2))
    }
    top = {"top.0.weight": rng.normal(size=(1, 3)).astype(np.float32), "top.0.bias": np.zeros(1, dtype=np.float32)}
    oracle = NumpyDLRM(top, FEATURES, 0, exponent=spec_of(mode).contribution_exponent)
    return kind(
        tables, oracle, spec_of(mode), STREAM, examples=EXAMPLES, record=record,
        padding={"tables.item": 0} if padding else {},
    )  # fmt: skip


def batch_of(indices: np.ndarray) -> Batch:
    """Example i reads a bag with a repeat, one item and one user; item 0 is nobody's."""
    i = indices.astype(np.int64)
    bags = [
        np.stack([1 + i % 7, 1 + i % 7, 1 + (3 * i) % (ROWS - 1)], axis=1).ravel(),
        1 + i % (ROWS - 2),
        i % (ROWS // 2),
    ]
    sizes = [3, 1, 1]
    features = tuple(FeatureBags(b, np.arange(len(i) + 1) * s) for b, s in zip(bags, sizes, strict=True))
    return Batch(np.zeros((len(i), 0), dtype=np.float32), features, (i % 2).astype(np.float32), i)


def train(trainer: EagerTrainer, start: int = 0, stop: int = STEPS) -> None:
    for step in range(start, stop):
        trainer.train_batch(batch_of(trainer.sample() if step != 4 else np.zeros(0, dtype=np.int64)))


def same_bits(a, b) -> bool:
    return a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() for n in a)


@pytest.mark.parametrize("padding", [False, True])
def test_E1_the_lazy_definition_has_the_bits_of_the_eager_one(padding):
    eager, lazy = trainer_of(EagerTrainer, padding=padding), trainer_of(LazyTrainer, padding=padding)
    train(eager)
    train(lazy)
    released, expected = lazy.release(), eager.release()
    assert same_bits(released.tables, expected.tables)
    assert same_bits(released.dense, expected.dense)
    for found, wanted in zip(lazy.transcript.steps, eager.transcript.steps, strict=True):
        assert same_bits(found.reads, wanted.reads)
        assert same_bits(found.sums, wanted.sums)
        assert found.loss == wanted.loss


def test_rows_do_owe_noise_until_they_are_read():
    """Otherwise the comparison above would be of eager with itself."""
    lazy = trainer_of(LazyTrainer)
    train(lazy)
    owed = STEPS - lazy._history.arrays["tables.item"]
    assert owed.max() == STEPS
    assert owed.min() < STEPS
    assert not same_bits(lazy._tables, lazy.tables)


@pytest.mark.parametrize("mode", list(Mode))
def test_R1_after_a_release_no_row_owes_noise(mode):
    lazy = trainer_of(LazyTrainer, mode)
    train(lazy)
    released = lazy.release()
    assert all(set(history.tolist()) == {STEPS} for history in lazy._history.arrays.values())
    assert same_bits(released.tables, lazy._tables)


def test_E1_settling_early_and_announcing_rows_changes_no_bit():
    eager, lazy = trainer_of(EagerTrainer), trainer_of(LazyTrainer)
    train(eager)
    for step in range(STEPS):
        if step % 5 == 2:
            lazy.settle()
        lazy.announce({"tables.item": np.array([step, 3, 3]), "tables.user": np.zeros(0, dtype=np.int64)})
        train(lazy, step, step + 1)
    assert same_bits(lazy.release().tables, eager.release().tables)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("pause", [0, 5, STEPS])
def test_R2_a_run_may_be_paused_after_any_step(mode, pause):
    whole = trainer_of(LazyTrainer, mode, record=False)
    train(whole)
    first = trainer_of(LazyTrainer, mode, record=False)
    train(first, 0, pause)
    kept = first.pause()
    second = trainer_of(LazyTrainer, mode, record=False)
    second.resume(kept)
    train(second, pause)
    assert same_bits(second.release().tables, whole.release().tables)
    assert same_bits(second.oracle.dense, whole.oracle.dense)
    account = spent(second.ledger.entries)
    assert (len(account.steps), account.resumes, len(account.releases)) == (STEPS, 1, 1)


def test_R2_a_pause_is_a_copy():
    lazy = trainer_of(LazyTrainer)
    train(lazy, 0, 3)
    kept = lazy.pause()
    weights, history = ({n: a.copy() for n, a in part.items()} for part in (kept.weights, kept.history))
    train(lazy, 3)
    assert same_bits(kept.weights, weights)
    assert same_bits(kept.history, history)
    assert "array" not in repr(kept)


def test_R2_a_pause_of_another_run_or_into_a_started_one_is_refused():
    lazy = trainer_of(LazyTrainer)
    train(lazy, 0, 3)
    kept = lazy.pause()
    with pytest.raises(ResumeError, match="of another run"):
        trainer_of(LazyTrainer, Mode.BRIDGE).resume(kept)
    with pytest.raises(ResumeError, match="at step 3: resume in a fresh trainer"):
        lazy.resume(kept)


def test_looking_changes_nothing_that_is_owed():
    lazy = trainer_of(LazyTrainer)
    train(lazy, 0, 6)
    before, history = ({n: a.copy() for n, a in part.items()} for part in (lazy._tables, lazy._history.arrays))
    assert lazy.gradient_sums(batch_of(np.arange(6))).sums
    assert same_bits(lazy.tables, lazy.tables)
    assert same_bits(lazy._tables, before)
    assert same_bits(lazy._history.arrays, history)
