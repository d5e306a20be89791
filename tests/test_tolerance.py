"""A tolerance of the tests as an epsilon: against facts, in words, and only where a test left a gap open."""

import math
from dataclasses import replace

import pytest

from samelaw.accounting.mechanism import SampledGaussian
from samelaw.accounting.statement import state
from samelaw.cli.tolerance import epsilon_if_smaller, tolerances, with_tolerances
from samelaw.contract.errors import InputError
from samelaw.contract.evidence import Evidence, TestResult, Verdict

GAUSSIAN = SampledGaussian(1.0, 1.0, 1)


# Epsilon's relative increase at a std 1 % and 10 % smaller, from independent computations of the privacy profiles.
# Within
# a twentieth: both ends here are upper bounds, each with a discretisation of its own.
@pytest.mark.parametrize(
    ("mechanism", "delta", "at_1", "at_10"),
    [
        (GAUSSIAN, 1e-5, 0.0117, 0.13),
        (SampledGaussian(0.01, 1.0, 1000), 1e-5, 0.021, 0.267),
        pytest.param(SampledGaussian(1e-3, 0.5, 10_000), 1e-6, 0.039, 0.51, marks=pytest.mark.slow),
    ],
)
def test_a_smaller_std_costs_what_is_known_of_it(mechanism, delta, at_1, at_10):
    epsilon = state(mechanism, delta).upper
    assert epsilon_if_smaller(mechanism, delta, 0.0) == pytest.approx(epsilon, rel=1e-3)
    assert epsilon_if_smaller(mechanism, delta, 0.01) / epsilon - 1 == pytest.approx(at_1, rel=0.05)
    assert epsilon_if_smaller(mechanism, delta, 0.1) / epsilon - 1 == pytest.approx(at_10, rel=0.05)


def test_no_noise_has_no_price():
    assert epsilon_if_smaller(GAUSSIAN, 1e-5, 1.0) == math.inf
    assert epsilon_if_smaller(GAUSSIAN, 1e-5, math.inf) == math.inf


@pytest.mark.parametrize("gap", [-0.01, math.nan])
def test_a_gap_is_a_relative_amount(gap):
    with pytest.raises(InputError, match="gap must be >= 0"):
        epsilon_if_smaller(GAUSSIAN, 1e-5, gap)


def scale(part, detectable, verdict=Verdict.EQUIVALENT):
    return TestResult(
        f"scale, {part}", verdict, 0.001, 0.01, 9999, 1e-11, detectable, 1 - 1e-6, "relative error of the std", "", 0.4
    )


def law(*tests, verdict=Verdict.EQUIVALENT):
    return Evidence("L1", "The law.", verdict, "Fine.", "zipf, aggregate", None, tests, {"margin": 0.01})


STATEMENT = state(GAUSSIAN, 1e-5)
RECOMPUTED = TestResult(
    "settlements, recomputed with the key", Verdict.EQUAL, 0.0, 0.0, 10, 0.0, 1.0, 1.0, "settlements that differ"
)
DENSE = replace(RECOMPUTED, name="dense parameters, recomputed with the key")


def test_the_margin_and_the_widest_detectable_gap_are_priced_in_words():
    found = tolerances(law(scale("touched rows", 0.02), scale("idle rows", 0.03)), STATEMENT)
    assert [one.kind for one in found] == ["margin", "detectable"]
    margin, detectable = found
    assert margin.gap == pytest.approx(1 - math.exp(-0.01))
    assert detectable.part == "idle rows"
    assert detectable.gap == 0.03
    assert margin.epsilon_if == epsilon_if_smaller(GAUSSIAN, 1e-5, margin.gap)
    assert margin.sentence == (
        "A noise scale 0.996 % too small (in touched rows and idle rows) could have been called equivalent by the "
        "tests of law; it would make epsilon at most 4.43 instead of 4.38."
    )
    assert "less than 3 % too small (in idle rows) might not have been refuted" in detectable.sentence
    assert "epsilon at most 4.54 instead of 4.38" in detectable.sentence


def test_without_equivalence_only_the_detectable_gap_speaks():
    tests = (scale("touched rows", 0.05, Verdict.NOT_REFUTED), scale("idle rows", 0.04))
    assert [one.kind for one in tolerances(law(*tests), STATEMENT)] == ["detectable"]


def test_a_part_that_can_hide_anything_leaves_no_bound():
    found = tolerances(law(scale("dense parameters", 1.7, Verdict.NOT_REFUTED)), STATEMENT)
    assert found[0].epsilon_if == math.inf
    assert found[0].sentence.endswith("no bound on epsilon would be left.")


def test_what_was_recomputed_with_the_key_leaves_no_gap():
    rows = (scale("touched rows", 0.02), scale("idle rows", 0.03))
    found = tolerances(law(*rows, scale("dense parameters", 0.4), DENSE), STATEMENT)
    assert {one.part for one in found} == {"touched rows and idle rows", "idle rows"}
    found = tolerances(law(*rows, RECOMPUTED), STATEMENT)
    assert all("leaves no such gap" in one.sentence for one in found)


@pytest.mark.parametrize("verdict", [Verdict.REFUTED, Verdict.NOT_ASSESSED])
def test_a_law_that_does_not_hold_is_not_priced(verdict):
    assert tolerances(law(scale("touched rows", 0.02), verdict=verdict), STATEMENT) == []


def test_the_tolerances_stand_in_the_evidence_of_the_priced_run_alone():
    other = replace(law(scale("touched rows", 0.02)), scope="edge cases")
    evidence, found = with_tolerances(
        [other, law(scale("touched rows", 0.02), scale("idle rows", 0.02))], STATEMENT, scope="zipf, aggregate"
    )
    assert "tolerances" not in evidence[0].numbers
    assert [one["epsilon_if"] for one in evidence[1].numbers["tolerances"]] == [one.epsilon_if for one in found]
