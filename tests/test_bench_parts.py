"""The tests of single rows and columns, and of values that repeat: both error rates, and what is no noise at all."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from samelaw.contract.evidence import Verdict
from samelaw.equivalence.bench.parts import CELL, coarse, worst_part

ROWS, SAMPLES = 40, 256


def worst(z: np.ndarray, rate: float = 1e-11) -> Verdict:
    return worst_part(z, part="row", name="the worst row", false_alarm=rate).verdict


def test_rates_are_kept_and_the_p_values_of_a_correct_trainer_are_uniform_where_it_matters() -> None:
    rng = np.random.default_rng(1)
    results = [
        worst_part(rng.standard_normal((ROWS, SAMPLES)), part="row", name="", false_alarm=0.05) for _ in range(600)
    ]
    refused = sum(result.verdict is Verdict.REFUTED for result in results)
    # 0.05 is an upper bound by Bonferroni, and for independent rows almost reached: Binomial(600, 0.0488), tails 1e-4.
    assert 11 <= refused <= 53
    assert all((result.p_value <= 0.05) == (result.verdict is Verdict.REFUTED) for result in results)


def test_the_promised_gap_of_one_row_is_seen_both_ways() -> None:
    rng = np.random.default_rng(2)
    gap = worst_part(rng.standard_normal((ROWS, SAMPLES)), part="row", name="", false_alarm=1e-11).detectable
    assert gap is not None
    for factor in (1 + gap, max(0.0, 1 - gap)):
        for row in (0, ROWS - 1):
            z = rng.standard_normal((ROWS, SAMPLES))
            z[row] *= factor
            assert worst(z) is Verdict.REFUTED
    heap = rng.standard_normal((ROWS, SAMPLES))
    heap[7] *= 1 + gap
    # What it is for: in a heap the same row is a gap of 1 % or so.
    assert heap.std() < 1.04


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_noise_in_half_precision_is_seen_and_in_single_precision_is_not(dtype: object) -> None:
    z = np.random.default_rng(3).standard_normal(1 << 15).astype(np.float32)
    half = z.astype(np.float16) if dtype == np.float16 else (z.view(np.uint32) & 0xFFFF0000).view(np.float32)
    rounding = np.random.default_rng(4).uniform(-6e-7, 6e-7, z.size)  # of the weights that carry the noise
    assert coarse(z + rounding, name="", false_alarm=1e-11).verdict is Verdict.NOT_REFUTED
    assert coarse(half + rounding, name="", false_alarm=1e-11).verdict is Verdict.REFUTED


def test_the_bound_on_repeated_values_holds_where_repetitions_are_many() -> None:
    rng = np.random.default_rng(5)
    found = [coarse(rng.standard_normal(1 << 14), name="", false_alarm=0.01).statistic for _ in range(50)]
    most = (1 << 14) * CELL * stats.norm.pdf(0) * (1 << 14)
    # By pairs: n^2/2 CELL times the integral of the squared density, 1/(2 sqrt(pi)); std of the mean of 50: 1.2.
    assert abs(np.mean(found) - (1 << 28) / 2 * CELL / (2 * np.sqrt(np.pi))) < 7
    assert max(found) < most


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refuted_and_none_at_all_are_not_assessed(bad: float) -> None:
    z = np.zeros((3, 4))
    z[1, 1] = bad
    assert worst(z) is Verdict.REFUTED
    assert coarse(z.ravel(), name="", false_alarm=1e-9).verdict is Verdict.REFUTED
    assert worst(np.empty((0, 4))) is worst(np.empty((4, 0))) is Verdict.NOT_ASSESSED
    assert coarse(np.empty(0), name="", false_alarm=1e-9).verdict is Verdict.NOT_ASSESSED
