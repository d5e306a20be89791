"""Claims E1, E2 and L1 over whole runs that Hypothesis makes up, and what a failing one prints."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from dataclasses import replace

import numba
import pytest
import torch
from hypothesis import HealthCheck, Phase, event, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from samelaw.cli.whole_runs import check, makers
from samelaw.contract.errors import InputError
from samelaw.contract.spec import Mode
from samelaw.equivalence import run_plans
from samelaw.equivalence.faults import FAULTS
from samelaw.equivalence.faults.noise import EPOCH, THREAD_ROWS
from samelaw.equivalence.run_plans import Example, RunPlan, Table
from samelaw.equivalence.strategies import TRAITS, traits
from samelaw.equivalence.strategies import run_plans as plans
from samelaw.equivalence.whole_runs import as_test, judge

# The same plans on every machine, in a number that costs about 10 s of one core; `make test-runs` sets another number,
# and then draws new ones each time.
EXAMPLES = int(os.environ.get("SAMELAW_RUNS", "0"))
# beartype draws from `random` what it checks.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """torch sums alike in both twins only with the same number of threads; the kernels' own number is in the plan."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[1])
    torch.set_num_threads(before[0])


@settings(max_examples=24, derandomize=True, **COMMON)
@given(plan=plans())
def test_a_whole_run_is_the_same_run_whoever_makes_it(plan):
    for trait in sorted(traits(plan)):
        event(trait)
    check(plan)


@pytest.mark.slow
@settings(max_examples=EXAMPLES or 3000, **COMMON)
@given(plan=plans())
def test_thousands_of_whole_runs_are_the_same_run_whoever_makes_them(plan):
    check(plan)


def test_the_plans_cover_what_they_say():
    # A trait that a plan has with probability 2 % is missed by 200 plans with probability below 0.02; these 200 are
    # fixed, so the counts do not change from day to day.
    counts: Counter[str] = Counter()

    @settings(max_examples=200, derandomize=True, **COMMON)
    @given(plan=plans())
    def census(plan):
        counts.update(traits(plan))
        counts["plans"] += 1

    census()
    assert counts["plans"] >= 200
    assert {name for name in TRAITS if counts[name] < 4} == set()


@settings(max_examples=15, derandomize=True, **COMMON)
@given(plan=plans())
def test_a_plan_prints_as_the_python_that_makes_it(plan):
    assert eval(repr(plan), {"RunPlan": RunPlan, "Table": Table, "Example": Example}) == plan


@settings(max_examples=10, derandomize=True, **COMMON)
@given(plan=plans(mode=Mode.BRIDGE))
def test_the_mode_of_a_plan_can_be_asked_for(plan):
    assert plan.mode == "bridge"


def found(fault, mode, *, shrink):
    """A plan on which a fault shows, the smallest that Hypothesis finds if it is to shrink; or None."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    try:
        return find(
            plans(mode=mode),
            lambda plan: bool(judge(plan, makers(FAULTS[fault].apply))),
            settings=settings(max_examples=300, derandomize=True, phases=phases, **COMMON),
        )
    except NoSuchExample:
        return None


CI_FAULTS = [("off-by-one", Mode.REPLAY)]
# A plan's tables have at most 8 rows, its runs at most 10 steps: what repeats after 64 rows or 10 steps cannot show.
TOO_LARGE = {"noise-shared-across-threads", "noise-shared-across-epochs"}
CASES = [
    pytest.param(name, mode, id=f"{name}-{mode}", marks=() if (name, mode) in CI_FAULTS else pytest.mark.slow)
    for name, fault in FAULTS.items()
    if fault.in_verify and name not in TOO_LARGE  # the others show in no run of a trainer on given batches
    for mode in fault.modes
]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_fault_prints_as_a_test_that_can_be_pasted(name, mode):
    shrink = (name, mode) in CI_FAULTS  # it takes minutes for some
    plan = found(name, mode, shrink=shrink)
    assert plan is not None, f"no plan shows {name}"
    with pytest.raises(AssertionError) as failure:
        check(plan, fault=FAULTS[name].apply)
    printed = str(failure.value)
    source = printed[printed.index("def test_") :]
    assert source == as_test(plan)
    assert not shrink or (plan.steps, len(plan.examples), len(plan.restarts)) == (1, 1, 0)
    space: dict[str, object] = {}
    exec(source, space)
    test = space["test_this_run"]
    test()  # without the fault it passes
    with planted(name), pytest.raises(AssertionError, match="expected"):
        test()


def test_what_repeats_beyond_the_largest_plan_is_all_that_is_left_out():
    assert THREAD_ROWS > 8
    assert EPOCH >= 10
    largest = RunPlan(
        tables=(Table("a", 8, 1),), features=(0,), examples=(Example(((7,),)),), steps=10, batches=((),) * 9 + ((0,),)
    )
    for name in TOO_LARGE:
        check(largest, fault=FAULTS[name].apply)  # no such plan shows it; `samelaw faults` does
        larger = replace(
            largest, tables=(Table("a", THREAD_ROWS + 1, 1),), steps=EPOCH + 1, batches=((),) * (EPOCH + 1)
        )
        assert judge(larger, makers(FAULTS[name].apply))


class planted:
    """A fault in every lazy trainer that cli.whole_runs makes."""

    def __init__(self, name):
        self.fault = FAULTS[name].apply

    def __enter__(self):
        from samelaw.cli import whole_runs

        self.module, self.before = whole_runs, whole_runs.makers
        whole_runs.makers = lambda fault=None: self.before(self.fault)

    def __exit__(self, *_):
        self.module.makers = self.before


PLAN = RunPlan(tables=(Table("a", 2, 1),), features=(0,), examples=(Example(((0,),)),), steps=2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batches": ((0,),)}, "a plan of 2 steps needs as many batches, got 1"),
        ({"restarts": ((1, 0),)}, "restarts must be .* in order, within 0..2"),
        ({"restarts": ((1, 3),)}, "restarts must be"),
        ({"schedule": ("linear", 0.5)}, "schedule must be .* got .'linear', 0.5."),
    ],
)
def test_a_plan_that_says_nothing_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        assert replace(PLAN, **change).spec


def test_initial_weights_and_slopes_are_exact_and_unlike():
    plan = RunPlan(tables=(Table("b", 90, 16), Table("a", 7, 3)), features=(0, 1), examples=(), steps=1)
    weights = plan.initial_tables()
    assert list(weights) == ["tables.a", "tables.b"]
    for table in weights.values():
        assert ((table * 2**16) % 1 == 0).all()
        assert len(set(table.ravel().tolist())) == table.size
    assert Example((), slope=3, power=-3).slopes(1, 4).tolist() == [(k % 17 - 8) / 8 for k in (10, 13, 16, 19)]
    assert run_plans.DENSE in RunPlan(tables=(), features=(), examples=(), steps=1, dense_width=1).initial_dense()


@given(st.data())
@settings(max_examples=15, derandomize=True, **COMMON)
def test_the_lookups_of_a_batch_are_its_bags_without_padding(data):
    plan = data.draw(plans())
    batch = plan.batch(range(len(plan.examples)))
    for f, lookup in enumerate(plan.lookups(batch)):
        table = plan.tables[plan.features[f]]
        expected = [[row for row in example.bags[f] if row != table.padding] for example in plan.examples]
        ends = lookup.offsets.tolist()
        assert [lookup.ids[a:b].tolist() for a, b in itertools.pairwise(ends)] == expected
