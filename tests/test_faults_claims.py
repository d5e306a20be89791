"""The claims that came with the fault catalogue: each holds on what is sound and refuses what is not."""

from dataclasses import replace

import numpy as np
import pytest

from samelaw.cli.verify import kernels_normals
from samelaw.contract.evidence import Verdict
from samelaw.contract.ledger import Spent
from samelaw.contract.noise import NoiseKey
from samelaw.contract.run import StepRecord, Transcript
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import PrivacySpec
from samelaw.contract.trace import GradientSums
from samelaw.equivalence.addresses import addresses
from samelaw.equivalence.budget import Budget, Waiting
from samelaw.equivalence.neighbours import distance, neighbours, without
from samelaw.equivalence.recorded import recorded
from samelaw.equivalence.same_reads import same_reads
from samelaw.equivalence.sampler import measure_sampled, sampled
from samelaw.equivalence.scenarios import edge_cases, population
from samelaw.equivalence.two_runs import measure_unrelated, unrelated
from samelaw.fast.cpu import CpuKernels
from samelaw.reference.noise import normals

STEPS, EXAMPLES, RATE = 1024, 200, 0.05
LAW = {"steps": STEPS, "examples": EXAMPLES, "sampling_rate": RATE}


def poisson(seed, rate=RATE):
    joined = np.random.default_rng(seed).random((STEPS, EXAMPLES)) < rate
    return lambda step: np.flatnonzero(joined[step])


# --- P1 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_P1_independent_draws_at_the_rate_are_not_refuted(seed):
    found = sampled(poisson(seed), **LAW)
    assert found.verdict is Verdict.NOT_REFUTED
    assert {test.verdict for test in found.tests} == {Verdict.NOT_REFUTED}
    assert sampled(poisson(seed), **LAW, expected=poisson(seed)).verdict is Verdict.EQUAL


def test_P1_notices_the_gap_that_it_promises():
    share = sampled(poisson(1), **LAW).tests[0]
    assert share.detectable < 0.15
    for seed in range(8):  # missed with probability 1e-6 each
        found = sampled(poisson(seed, RATE * (1 + share.detectable)), **LAW)
        assert found.tests[0].verdict is Verdict.REFUTED


def refused_by(draw, **more):
    found = sampled(draw, **LAW, **more)
    assert found.verdict is Verdict.REFUTED
    assert found.first_disagreement is not None
    return [test.name for test in found.tests if test.verdict is Verdict.REFUTED]


def test_P1_refuses_a_fixed_size_at_the_right_rate_by_the_sizes_alone():
    rng = np.random.default_rng(2)
    batches = [np.sort(rng.permutation(EXAMPLES)[:10]) for _ in range(STEPS)]
    assert refused_by(lambda step: batches[step]) == ["batch sizes"]


def test_P1_refuses_an_example_that_never_joins_by_its_count():
    draw = poisson(3)
    assert refused_by(lambda step: draw(step)[draw(step) != 17]) == ["how often each example joins"]


def test_P1_refuses_batches_that_are_drawn_twice_by_the_pairs_of_steps():
    draw = poisson(4)
    assert refused_by(lambda step: draw(step % 20)) == [
        "how often each example joins",
        "share of examples that join twice, 20 steps apart",
    ]
    assert "share of examples that join twice, 1 steps apart" in refused_by(lambda step: draw(step // 2))


def test_P1_with_the_key_refuses_one_example_in_one_batch():
    draw = poisson(5)

    def other(step):
        return draw(step)[1:] if step == 700 else draw(step)

    assert refused_by(other, expected=draw) == ["batches, recomputed with the key"]


@pytest.mark.parametrize("batch", [[3, 3], [5, 4], [-1, 2], [EXAMPLES]])
def test_P1_refuses_what_is_no_selection_of_the_examples(batch):
    assert sampled(lambda step: np.array(batch), **LAW).verdict is Verdict.REFUTED


def test_P1_of_nothing_or_of_everybody_is_not_assessed():
    assert sampled(poisson(0), **LAW | {"steps": 0}).verdict is Verdict.NOT_ASSESSED
    everybody = sampled(lambda step: np.arange(EXAMPLES), **LAW | {"sampling_rate": 1.0})
    assert everybody.verdict is Verdict.NOT_ASSESSED


# --- S2 ---------------------------------------------------------------------------------------------------------------


def sums_of(batch, factor):
    """Each example adds (3, 4) to its own row and to row 0, scaled."""
    rows = np.concatenate([[0], np.sort(batch.indices) + 1]).astype(np.int64)
    one = factor(batch) * np.array([3, 4], dtype=np.int64)
    values = np.stack([len(batch) * one, *[one] * len(batch)]) if len(batch) else np.zeros((1, 2), np.int64)
    return GradientSums(0, {"t": rows}, {"t": values}, {}, np.full(len(batch), 0.5))


def test_S2_compares_the_sums_with_and_without_each_example():
    batch = population(examples=6, expected_batch_size=2.0).everyone
    norm = np.sqrt(50)  # (3, 4) on two rows
    assert neighbours(lambda b: sums_of(b, lambda _: 1), [batch], clip_norm=norm).verdict is Verdict.NOT_REFUTED
    tight = neighbours(lambda b: sums_of(b, lambda _: 1), [batch], clip_norm=0.999 * norm)
    assert tight.verdict is Verdict.REFUTED
    assert "6 examples, example 0 removed" in str(tight.first_disagreement)
    spread = neighbours(lambda b: sums_of(b, len), [batch], clip_norm=norm)
    assert spread.verdict is Verdict.REFUTED  # a factor that depends on the batch


def test_S2_without_a_clipped_example_is_not_assessed():
    batch = population(examples=3, expected_batch_size=2.0).everyone

    def unclipped(b):
        return replace(sums_of(b, lambda _: 1), factors=np.ones(len(b)))

    assert neighbours(unclipped, [batch], clip_norm=100.0).verdict is Verdict.NOT_ASSESSED


def test_S2_distance_is_exact_and_counts_rows_that_only_one_side_has():
    one = GradientSums(-1, {"t": np.array([1, 5])}, {"t": np.array([[1, 0], [2**40, 1]])})
    other = GradientSums(-1, {"t": np.array([5, 9])}, {"t": np.array([[2**40, 0], [0, 3]])})
    assert distance(one, other) == (1 + 1 + 9) / 4


def test_S2_removes_exactly_the_bags_of_one_example():
    batch = next(b for b in edge_cases().batches if len(b) > 3)
    less = without(batch, 2)
    assert len(less) == len(batch) - 1
    for whole, cut in zip(batch.features, less.features, strict=True):
        bags = np.split(whole.ids, whole.offsets[1:-1])
        del bags[2]
        assert np.array_equal(np.concatenate(bags), cut.ids)
        assert np.array_equal(np.cumsum([0, *map(len, bags)]), cut.offsets)


# --- N2 ---------------------------------------------------------------------------------------------------------------


def reference(stream, purpose, table, rows, steps, dim):
    return normals(stream, purpose, table, rows, steps, dim=dim)


compiled = kernels_normals(CpuKernels(1))


def test_N2_the_definition_uses_every_bit():
    found = addresses(reference)
    assert found.verdict is Verdict.EQUAL
    assert found.numbers["blocks"] == found.numbers["distinct"] > 700


@pytest.mark.parametrize(
    ("change", "bit"),
    [
        (lambda s, p, t, r, n, d: (s, p, t, r, n % 2**31, d), "bit 31 of the step"),
        (lambda s, p, t, r, n, d: (s, p, t, r % 2**47, n, d), "bit 47 of the row"),
        (lambda s, p, t, r, n, d: (s, p, t % 2**15, r, n, d), "bit 15 of the table"),
        (lambda s, p, t, r, n, d: (replace(s, rounds=12), p, t, r, n, d), "8 rounds"),
        (lambda s, p, t, r, n, d: (s, type(p).DENSE, t, r, n, d), "purpose BRIDGE"),
        (
            lambda s, p, t, r, n, d: (replace(s, key=NoiseKey((*s.key.words[:7], 0))), p, t, r, n, d),
            "bit 224 of the key",
        ),
    ],
)
def test_N2_names_the_bit_that_does_not_reach_the_generator(change, bit):
    found = addresses(lambda *address: compiled(*change(*address)))
    assert found.verdict is Verdict.REFUTED
    assert bit in str(found.first_disagreement)


def test_N2_sees_a_block_number_of_few_bits():
    def repeats(stream, purpose, table, rows, steps, dim):
        return np.tile(compiled(stream, purpose, table, rows, steps, min(dim, 512)), (1, -(-dim // 512)))[:, :dim]

    assert "block 32" in str(addresses(repeats).first_disagreement)


# --- A2 ---------------------------------------------------------------------------------------------------------------

SPEC = PrivacySpec(0.5, 1.0, RATE, 10.0, 1e-4, Schedule.constant(0.1, steps=4))
BATCHES = [np.array([1, 5]), np.array([], dtype=np.int64), np.array([2, 3, 9])]


def books(**changes):
    steps = [
        {"step": i, "examples": len(b), "lr": 0.1, "noise_std": 0.5, "sampler": "keyed-poisson"}
        for i, b in enumerate(BATCHES)
    ]
    steps[2] = steps[2] | changes
    records = [StepRecord(i, len(b), {}, {}, {}, {}, None) for i, b in enumerate(BATCHES)]
    return Spent({}, steps, [], 0), Transcript({}, {}, records)


MECHANISM = {"steps": 3, "sampling_rate": RATE, "noise_multiplier": 1.0}


def test_A2_books_that_say_what_was_run_are_equal():
    account, transcript = books()
    found = recorded(account, transcript, SPEC, batches=BATCHES, keyed=lambda i: BATCHES[i], mechanism=MECHANISM)
    assert found.verdict is Verdict.EQUAL


@pytest.mark.parametrize(
    ("changes", "keyed", "mechanism", "said"),
    [
        ({"examples": 10}, None, None, "step 2, examples"),
        ({}, [1, 2], None, "step 0, sampler"),
        ({}, None, {"steps": 2}, "priced, steps"),
        ({}, None, {"sampling_rate": 0.04}, "priced, sampling rate"),
        ({}, None, {"noise_multiplier": 1.01}, "priced, noise multiplier"),
        ({}, None, {"noise_multiplier": 0.99}, "priced, noise multiplier"),
    ],
)
def test_A2_names_what_the_books_have_wrong(changes, keyed, mechanism, said):
    account, transcript = books(**changes)
    drawn = (lambda i: BATCHES[i]) if keyed is None else (lambda i: np.array(keyed))
    priced = None if mechanism is None else MECHANISM | mechanism
    found = recorded(account, transcript, SPEC, batches=BATCHES, keyed=drawn, mechanism=priced)
    assert found.verdict is Verdict.REFUTED
    assert said in str(found.first_disagreement)


def test_A2_a_batch_from_outside_that_the_ledger_calls_external_is_no_lie():
    account, transcript = books(sampler="external")
    found = recorded(account, transcript, SPEC, batches=BATCHES, keyed=lambda i: BATCHES[i] if i < 2 else BATCHES[0])
    assert found.verdict is Verdict.EQUAL


def test_A2_a_step_too_few_is_refused_and_no_step_is_not_assessed():
    account, transcript = books()
    short = replace(account, steps=account.steps[:2])
    assert recorded(short, transcript, SPEC, batches=BATCHES, keyed=lambda i: BATCHES[i]).verdict is Verdict.REFUTED
    nothing = recorded(Spent({}, [], [], 0), Transcript({}, {}), SPEC, batches=[], keyed=lambda i: BATCHES[i])
    assert nothing.verdict is Verdict.NOT_ASSESSED


# --- K1 ---------------------------------------------------------------------------------------------------------------


def released(noise, start=0.25):
    """A run without steps that read anything: every row is idle, and its noise is given."""
    initial = np.full(noise.shape, start, dtype=np.float32)
    std = float(SPEC.clock.std(SPEC.clock.at(np.array([2])))[0])
    final = (initial - std * noise).astype(np.float32)
    records = [StepRecord(i, 0, {}, {}, {}, {}, None) for i in range(2)]
    return Transcript({"t": initial}, {}, records, {"t": final}, {})


def test_K1_runs_with_noise_of_their_own_are_not_refuted_and_shared_noise_is():
    rng = np.random.default_rng(6)
    one, other = rng.standard_normal((2, 64, 16))
    assert unrelated(released(one), released(other), SPEC).verdict is Verdict.NOT_REFUTED
    same = unrelated(released(one), released(one, start=0.5), SPEC)
    assert [test.verdict for test in same.tests] == [Verdict.REFUTED, Verdict.REFUTED]
    half = other.copy()
    half[:32] = one[:32]
    assert unrelated(released(one), released(half), SPEC).verdict is Verdict.REFUTED


def test_K1_without_a_row_that_owed_the_same_steps_is_not_assessed():
    empty = Transcript({}, {}, [], {}, {})
    assert unrelated(empty, empty, SPEC).verdict is Verdict.NOT_ASSESSED


def read_later(noise, until, seed):
    """Row 0 is read at step 1 and the others at `until`, after this noise; what follows the reads is of the seed."""
    spec = replace(SPEC, schedule=Schedule.constant(0.5, steps=4))
    initial = np.full(noise.shape, 0.25, dtype=np.float32)
    std = np.array([float(spec.clock.std(spec.clock.at(np.array([k])))[0]) for k in (1, *[until] * (len(noise) - 1))])
    read = (initial - std[:, None] * noise).astype(np.float32)
    rows = {1: np.arange(1), until: np.arange(1, len(noise))}
    records = [
        StepRecord(
            i, len(rows.get(i, ())), {"t": rows[i]} if i in rows else {}, {"t": read[rows[i]]} if i in rows else {},
            {"t": np.zeros((len(rows[i]), noise.shape[1]), np.int64)} if i in rows else {}, {}, None,
        )
        for i in range(4)
    ]  # fmt: skip
    final = read - np.random.default_rng(seed).standard_normal(noise.shape).astype(np.float32)
    return Transcript({"t": initial}, {}, records, {"t": final}, {}), spec


def test_K1_pairs_the_same_row_and_steps_whatever_the_last_read_of_each_run():
    # Rows 1 to 39 are read at step 2 by both runs; one of them reads row 0 at step 3 as well.
    rng = np.random.default_rng(9)
    shared = rng.standard_normal((40, 16))
    one, spec = read_later(shared, 2, seed=1)
    other, _ = read_later(shared, 2, seed=1)
    other.steps[3] = StepRecord(
        3, 1, {"t": np.arange(1)}, {"t": other.steps[1].reads["t"]}, {"t": np.zeros((1, 16), np.int64)}, {}, None
    )
    found = unrelated(one, other, spec)
    assert found.numbers["spans"] == 40 + 39  # up to the first reads, and all but row 0 from there to the end
    repeated = [test for test in found.tests if test.name == "noise that both runs hold"]
    assert repeated[0].verdict is Verdict.REFUTED


def test_K1_and_P1_keep_to_one_budget_with_the_rest_of_a_suite():
    rng = np.random.default_rng(6)
    one, two = rng.standard_normal((2, 64, 16))
    waiting = [measure_unrelated(released(one), released(two), SPEC), measure_sampled(poisson(3), **LAW)]
    budget = Budget(1e-9)
    found = budget.conclude(waiting)
    assert all(isinstance(claim, Waiting) for claim in waiting)
    assert sum(claim.tests for claim in waiting) == 2 + 5
    assert budget.spent(found) == pytest.approx(1e-9)
    assert all(0 < test.p_value <= 1 for claim in found for test in claim.tests)


def test_P1_refuses_exactly_where_its_p_values_are_below_the_rate():
    for seed in range(200):
        excess = 1 + 0.1 * np.random.default_rng([7, seed]).random()
        for test in sampled(poisson(seed, RATE * excess), **LAW, false_alarm=0.05).tests:
            assert (test.verdict is Verdict.REFUTED) == (test.p_value <= test.false_alarm), test


# --- C1 ---------------------------------------------------------------------------------------------------------------


def one_step(total):
    record = StepRecord(
        0, 1, {"t": np.array([2])}, {"t": np.ones((1, 2), np.float32)}, {"t": np.array([[total, 4]])}, {}, 0.0
    )
    return Transcript({"t": np.ones((3, 2), np.float32)}, {}, [record], {"t": np.ones((3, 2), np.float32)}, {})


def test_C1_refuses_one_unit_in_one_sum():
    def definition(record):
        return GradientSums(0, {"t": np.array([2])}, {"t": np.array([[3, 4]])})

    assert same_reads(one_step(3), definition).verdict is Verdict.EQUAL
    found = same_reads(one_step(2), definition)
    assert found.verdict is Verdict.REFUTED
    assert "step 0, gradient sum of 't', row 2" in str(found.first_disagreement)


def test_C1_of_a_run_without_gradients_is_not_assessed():
    empty = Transcript({"t": np.ones((3, 2), np.float32)}, {}, [], {"t": np.ones((3, 2), np.float32)}, {})
    assert same_reads(empty, lambda record: GradientSums(0)).verdict is Verdict.NOT_ASSESSED
