"""The bench refutes every planted bug by the claim that names it, and the correct trainer never."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest

from samelaw.contract.bench import Abilities
from samelaw.contract.evidence import Evidence, Verdict
from samelaw.equivalence.bench.conduct import run_here
from samelaw.equivalence.bench.conform import conform

sys.path.insert(0, str(Path(__file__).parent))  # neighbours, whatever way pytest imports test modules
import bench_trainers

RUNS = 3


@cache
def judge(trainer: type[bench_trainers.NumpyTrainer], *, runs: int = RUNS, seed: int = 11) -> dict[str, Evidence]:
    found = conform(lambda job: run_here(trainer, job), trainer.abilities, runs=runs, seed=seed)
    return {item.claim: item for item in found}


def refuted(found: dict[str, Evidence]) -> list[str]:
    return [claim for claim, item in found.items() if item.verdict is Verdict.REFUTED]


@pytest.mark.parametrize("seed", range(3))
def test_a_correct_trainer_is_never_refuted(seed: int) -> None:
    assert refuted(judge(bench_trainers.NumpyTrainer, runs=2, seed=seed)) == []


def test_a_correct_trainer_that_publishes_every_iterate_is_not_refuted() -> None:
    found = judge(bench_trainers.EveryIterate)
    assert refuted(found) == []
    assert found["B10"].verdict.holds
    assert found["B10"].tests


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 20))
def test_a_correct_trainer_is_never_refuted_by_few_runs(seed: int) -> None:
    assert refuted(judge(bench_trainers.NumpyTrainer, runs=2, seed=seed)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
def test_a_correct_trainer_is_never_refuted_at_full_size(seed: int) -> None:
    assert refuted(judge(bench_trainers.EveryIterate, runs=8, seed=seed)) == []


# Each has a sibling in the default tests that the same claim must refuse for the same reason.
REPEATS = (
    bench_trainers.ClipAtTwiceTheNorm,
    bench_trainers.NoClipNormInNoise,
    bench_trainers.NoiseInBrainFloat,
    bench_trainers.SigmaFivePercentLow,
    bench_trainers.WeightsIgnored,
)


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, marks=pytest.mark.slow if f in REPEATS else ()) for f in bench_trainers.CAUGHT_BY],
    ids=lambda fault: fault.__name__,
)
def test_every_fault_is_refuted_by_the_claims_that_name_it(fault: type[bench_trainers.NumpyTrainer]) -> None:
    found = judge(fault)
    assert set(bench_trainers.CAUGHT_BY[fault]) <= set(refuted(found))
    wrong = found[bench_trainers.CAUGHT_BY[fault][0]].first_disagreement
    assert wrong is not None


@pytest.mark.parametrize(
    ("fault", "claim", "words"),
    [
        (bench_trainers.ClipPerTable, "B3", "two tables (item [2], user [3], 0.8 C each): expected at most 1 C"),
        (bench_trainers.DenseOutsideTheNorm, "B3", "a table and the dense part"),
        (bench_trainers.DuplicatesOnce, "B2", "an id twice beside another (ids [3, 3, 5])"),
        (bench_trainers.BatchSizeFromTheData, "B2", "expected a sum of"),
        (bench_trainers.PaddingInTheMean, "B2", "mean with padding (mean of ids [0] * 19 + [1], 0 is padding)"),
        (bench_trainers.NoiseOnPadding, "B9", "padding, with noise, row 0 of 'item': expected unchanged"),
        (bench_trainers.NoNoiseOnIdleRows, "B5", "expected noise in every column, found the bits that it had before"),
        (bench_trainers.EmptyBatchIsSilent, "B7", "at release (3 empty batches): expected noise in every column"),
        (bench_trainers.NotFinite, "B1", "padding in a bag (ids [0, 1], 0 is padding), released 'item'"),
        (bench_trainers.CrashesOnMeans, "B1", "crashed: ZeroDivisionError: mean of nothing"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_evidence_names_the_input_that_shows_it(fault: type, claim: str, words: str) -> None:
    assert words in judge(fault)[claim].summary


def test_noise_of_the_wrong_shape_is_named_by_tests_of_shape_and_not_of_scale() -> None:
    for fault in (bench_trainers.UniformNoise, bench_trainers.LaplaceNoise):
        names = [test.name for test in judge(fault)["B5"].tests if test.verdict is Verdict.REFUTED]
        assert "Kolmogorov-Smirnov, single step, rows never read" in names
        assert "scale, single step, rows never read" not in names


class Quiet(bench_trainers.NumpyTrainer):
    """It cannot turn its noise off."""

    abilities = Abilities.everything(noise_off=False)


class QuietPerTable(Quiet, bench_trainers.ClipPerTable):
    pass


class QuietDuplicatesOnce(Quiet, bench_trainers.DuplicatesOnce):
    pass


def test_a_trainer_whose_noise_stays_on_is_judged_with_little_noise_and_the_gap_is_said() -> None:
    found = judge(Quiet)
    assert refuted(found) == []
    assert found["B2"].verdict is Verdict.NOT_REFUTED
    for claim in ("B2", "B3"):
        small = [test for test in found[claim].tests if not test.name.startswith("6 steps")]
        assert all(0 < test.detectable < 1.05 for test in small)
        assert len(found[claim].tests) - len(small) == (4 if claim == "B2" else 3)
    # 1 C and what noise of 0.001 C can hide: far below the 1.13 C of clipping per table.
    assert max(test.detectable for test in small) < 1.03
    # 24,000 values with noise of 0.001 C, over two runs and six steps, are longer than the bound: the gap says so.
    assert 1.4 < max(test.detectable for test in found["B3"].tests) < 2


@pytest.mark.parametrize(("fault", "claim"), [(QuietPerTable, "B3"), (QuietDuplicatesOnce, "B2")])
def test_wrong_sums_show_through_little_noise(fault: type[bench_trainers.NumpyTrainer], claim: str) -> None:
    assert claim in refuted(judge(fault, runs=2))


def test_the_gap_that_is_said_is_that_of_the_part_that_is_known_least() -> None:
    found = judge(bench_trainers.NumpyTrainer)["B4"]
    widest = max(test.detectable for test in found.tests if test.name.startswith("scale"))
    assert f"; {widest:.2g} in " in found.numbers["smallest_gap"]
    assert f"{widest:.2g} in " in found.summary


class Modest(bench_trainers.NumpyTrainer):
    """It declares nothing: one table, one id a bag, released weights alone."""

    abilities = Abilities()


class ModestButWrong(Modest, bench_trainers.DuplicatesOnce):
    """Its bug lies in what it does not declare."""


def test_what_is_not_declared_is_not_assessed_and_the_evidence_says_so() -> None:
    found = judge(ModestButWrong)
    assert refuted(found) == []
    for claim, words in {
        "B6": "does not declare dense parameters",
        "B7": "does not declare empty batches",
        "B9": "does not declare padding",
        "B10": "does not declare that every iterate may be published",
        "E1": "draws its own noise",
    }.items():
        assert found[claim].verdict is Verdict.NOT_ASSESSED
        assert words in found[claim].summary
    assert "an id twice in a bag" in found["B2"].numbers["inputs_not_declared"]
    assert found["B4"].verdict is not Verdict.NOT_ASSESSED


class Untrue(bench_trainers.NumpyTrainer):
    """It says that its noise can be off, and never is."""

    def sigma(self) -> float:
        return max(super().sigma(), 0.1)


def test_an_ability_that_is_declared_and_missing_is_refuted() -> None:
    assert "B2" in refuted(judge(Untrue, runs=2))
