"""pytest --samelaw-trainer: each claim of the bench as a test of somebody else's suite."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

TRAINER = """
import numpy as np
from samelaw.contract.bench import Abilities

class Good:
    abilities = Abilities(noise_off=True)
    def __init__(self, problem, seed):
        self.problem, self.rng = problem, np.random.default_rng(seed)
        self.now = {name: value.copy() for name, value in problem.tables.items()}
    def train_batch(self, batch):
        reads, p = batch.reads["item"], self.problem
        total = np.zeros(self.now["item"].shape)
        for i, row in enumerate(reads.ids):
            total[row] += reads.readout[i] * min(1, p.clip_norm / max(np.linalg.norm(reads.readout[i]), 1e-12))
        total += p.noise_multiplier * p.clip_norm * self.rng.standard_normal(total.shape)
        step = batch.learning_rate / self.divisor(batch)
        self.now["item"] = (self.now["item"] - step * total).astype(np.float32)
    def divisor(self, batch):
        return self.problem.expected_batch_size
    def weights(self):
        return self.release()
    def release(self):
        return dict(self.now)

class ByBatchSize(Good):
    def divisor(self, batch):
        return len(batch)

class Short(Good):
    def release(self):
        return {"item": self.now["item"][:3]}
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(their=TRAINER, test_own="def test_own(): pass")
    return pytester


def run(suite: pytest.Pytester, *options: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", "-rs", "--samelaw-runs", "2", *options)


def test_each_claim_is_a_test_and_what_is_not_assessed_is_skipped_with_its_reason(suite: pytest.Pytester) -> None:
    suite.makeini("[pytest]\nsamelaw_trainer = their:Good\nsamelaw_runs = 2\nsamelaw_seed = 3\n")
    result = suite.runpytest_subprocess("-p", "no:cacheprovider", "-rs", "-v")
    result.assert_outcomes(passed=7, skipped=5)  # the suite's own test, and B1 B2 B3 B4 B5 B8
    result.stdout.fnmatch_lines(["*does not declare dense parameters*"])


def test_a_refuted_claim_fails_and_names_the_input(suite: pytest.Pytester) -> None:
    result = run(suite, "--samelaw-trainer", "their:ByBatchSize", "-k", "B2 or own")
    result.assert_outcomes(passed=1, failed=1, deselected=11 - 1)
    result.stdout.fnmatch_lines(["*B2: The weights move by*", "*a batch smaller than expected (3 examples where 8*"])
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.slow
def test_weights_that_cannot_be_judged_fail_in_words(suite: pytest.Pytester) -> None:
    result = run(suite, "--samelaw-trainer", "their:Short", "-k", "B3 or B4")
    result.assert_outcomes(failed=2, deselected=10)
    result.stdout.fnmatch_lines(["*'item' must have the shape (6, 4)*"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", "soon"),
        pytest.param("timeout", "inf", marks=pytest.mark.slow),
        pytest.param("runs", "many", marks=pytest.mark.slow),
    ],
)
def test_a_configuration_that_is_none_fails_in_words(suite: pytest.Pytester, name: str, value: str) -> None:
    suite.makeini(f"[pytest]\nsamelaw_trainer = their:Good\nsamelaw_{name} = {value}\n")
    result = suite.runpytest_subprocess("-p", "no:cacheprovider", "-k", "B2")
    result.assert_outcomes(failed=1, deselected=11)
    result.stdout.fnmatch_lines([f"samelaw_{name} *must be *got '{value}'*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_without_a_trainer_nothing_of_samelaw_is_imported(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_own="import sys\ndef test_own(): assert not [m for m in sys.modules if m.startswith('samelaw.contract')]"
    )
    suite.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
