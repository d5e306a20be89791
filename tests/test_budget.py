"""One budget for a suite: Holm's step-down, at its stated rate whatever the dependence, and naming every culprit."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from statsmodels.stats.multitest import multipletests

from samelaw.contract.errors import InputError
from samelaw.contract.evidence import Disagreement, Evidence, Verdict
from samelaw.equivalence import laws
from samelaw.equivalence.budget import Budget, Pending, Waiting, holm


@settings(max_examples=25, deadline=None)  # statsmodels takes tens of milliseconds a call
@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1e-300, 1e-12, 1.0])), max_size=40))
def test_adjusted_p_values_are_those_of_statsmodels(p_values):
    found = holm(np.array(p_values, dtype=np.float64))
    expected = multipletests(p_values, method="holm")[1] if p_values else np.empty(0)
    assert found == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
def test_values_that_are_no_probabilities_are_refused(bad):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm(np.array([0.5, bad]))


@pytest.mark.parametrize("rate", [0, -1e-9, 0.6, float("nan"), float("inf")])
def test_a_budget_is_a_probability(rate):
    with pytest.raises(InputError, match="false_alarm must be"):
        Budget(rate)


def samples_of(shared, rng, tests, n):
    """Rows of normals that share a part: `shared` = 1 makes all tests look at the same samples."""
    common = rng.standard_normal(n)
    return [np.sqrt(shared) * common + np.sqrt(1 - shared) * rng.standard_normal(n) for _ in range(tests)]


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_H1_a_correct_suite_is_refused_at_no_more_than_the_budget_whatever_the_dependence(shared):
    rng = np.random.default_rng(31)
    runs, budget = 3000, 0.05
    z = np.array([[s.mean() * np.sqrt(s.size) for s in samples_of(shared, rng, 6, 16)] for _ in range(runs)])
    p_values = 2 * special.ndtr(-np.abs(z))
    alarms = sum(bool((holm(p) <= budget).any()) for p in p_values)
    assert alarms <= stats.binom.isf(1e-6, runs, budget)
    if shared == 0:
        assert alarms >= stats.binom.ppf(1e-6, runs, 1 - (1 - budget / 6) ** 6)  # and no less than it may


def suite_of(scales):
    """One claim a scale, each holding one test of 4,000 values."""
    rng = np.random.default_rng(32)
    waiting = []
    for i, factor in enumerate(scales):
        one = laws.measure_scale(factor * rng.standard_normal(4000), margin=0.1, name=f"scale {i}")
        waiting.append(Waiting(1, lambda rate, one=one: evidence_of(one.at(rate))))
    return waiting


def evidence_of(*tests):
    verdict = Verdict.REFUTED if any(t.verdict is Verdict.REFUTED for t in tests) else Verdict.NOT_REFUTED
    wrong = None if verdict is not Verdict.REFUTED else Disagreement("a row", "this", "that")
    return Evidence("L1", "A law.", verdict, "What was found.", "a run", wrong, tuple(tests))


def test_every_test_is_judged_at_its_share_and_told_its_adjusted_p_value():
    found = Budget(1e-6).conclude(suite_of([1, 1, 1, 1]))
    assert all(isinstance(one, Pending) for one in suite_of([1]))
    tests = [test for claim in found for test in claim.tests]
    assert {test.false_alarm for test in tests} == {1e-6 / 4}
    assert Budget(1e-6).spent(found) == pytest.approx(1e-6)
    assert [t.adjusted_p_value for t in tests] == holm(np.array([t.p_value for t in tests])).tolist()
    assert {claim.verdict for claim in found} == {Verdict.NOT_REFUTED}


def test_H2_and_the_later_steps_name_further_culprits():
    """One of 100 tests is hopeless; another has a p-value between budget/100 and budget/99, which only Holm refuses."""
    budget = Budget(1e-6)
    p_between = (1e-6 / 100 + 1e-6 / 99) / 2
    plain = laws.mean(np.random.default_rng(33).standard_normal(100), false_alarm=1e-8)
    tests = [replace(plain, name=f"test {i}", p_value=0.5) for i in range(98)]
    tests.append(replace(plain, name="hopeless", p_value=0.0, verdict=Verdict.REFUTED))
    tests.append(replace(plain, name="second", p_value=p_between))
    found = budget.judge([evidence_of(test) for test in tests])
    assert [claim.tests[0].name for claim in found if claim.verdict is Verdict.REFUTED] == ["hopeless", "second"]
    second = found[-1]
    assert second.first_disagreement.where == "second"
    assert "later step" in second.tests[0].note
    assert "1e-06" in second.first_disagreement.expected
    alone = budget.judge([evidence_of(test) for test in tests if test.name != "hopeless"])
    assert {claim.verdict for claim in alone} == {Verdict.NOT_REFUTED, Verdict.REFUTED}  # 99 tests: budget/99 now


def test_exact_claims_have_no_part_in_the_budget():
    exact = Evidence("E1", "Bits.", Verdict.EQUAL, "Equal.", "a run")
    found = Budget(1e-6).conclude([exact, *suite_of([1, 1])])
    assert found[0] == exact
    assert found[1].tests[0].false_alarm == 1e-6 / 2


def test_samples_that_are_not_finite_have_p_value_0_and_are_refused():
    one = laws.measure_scale(np.full(100, np.nan), margin=0.1)
    found = Budget(1e-9).conclude([Waiting(1, lambda share: evidence_of(one.at(share))), *suite_of([1])])
    assert found[0].tests[0].adjusted_p_value == 0
    assert found[0].verdict is Verdict.REFUTED
    assert found[1].verdict is Verdict.NOT_REFUTED


def test_an_empty_suite_is_no_error():
    assert Budget().conclude([]) == []
