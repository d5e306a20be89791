"""Clipping and gradient sums, against gradients that are written out row by row in exact rational arithmetic.

The same checks run over generated batches and, in the second half, over seeded faults that they must reject.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samelaw.contract.spec import CONTRIBUTION_BITS
from samelaw.contract.trace import Lookup, Pooling
from samelaw.reference import clipping
from samelaw.reference.clipping import clip_factors, contributions, dot, gradient_sums, square_norms

TABLES = ("a", "b")


@dataclass
class Case:
    """What a model hands to the trainer for one batch."""

    examples: int
    lookups: list[Lookup]
    pooled: list[np.ndarray]
    dense: np.ndarray
    clip_norm: float = 1.0
    note: str = ""

    @property
    def exponent(self) -> int:
        return math.ceil(math.log2(self.clip_norm)) - CONTRIBUTION_BITS


@dataclass
class Clipped:
    """What a clipping rule makes of it."""

    norms: np.ndarray
    factors: np.ndarray
    integers: list[dict[str, dict[int, np.ndarray]]] = field(default_factory=list)


def clip(case: Case) -> Clipped:
    """The rule under test."""
    norms = square_norms(case.lookups, case.pooled, case.dense, TABLES)
    factors = clip_factors(norms, case.clip_norm)
    return Clipped(norms, factors, contributions(case.lookups, case.pooled, factors, case.exponent, TABLES))


# --- the gradient of each example, written out ------------------------------------------------------------------------


def written_out(case: Case, example: int) -> tuple[dict[tuple[str, int], list[Fraction]], Fraction]:
    """(table, row) -> exact gradient; and sum over bags and rows of |m(r) d|^2, which measures cancellation.

    Multiplicities are the float64 sums that arithmetic.md defines, and the division of mean pooling is its one float64
    rounding; everything else is exact. Infinite gradients have no exact value: the caller leaves them out.
    """
    rows: dict[tuple[str, int], list[Fraction]] = {}
    size = Fraction(0)
    for lookup, gradients in zip(case.lookups, case.pooled, strict=True):
        for bag in np.flatnonzero(lookup.example_of_bag == example):
            start, end = int(lookup.offsets[bag]), int(lookup.offsets[bag + 1])
            d = [float(x) for x in gradients[bag]]
            if lookup.pooling is Pooling.MEAN and end > start:
                d = [x / (end - start) for x in d]
            multiplicity: dict[int, float] = {}
            for position in range(start, end):
                weight = 1.0 if lookup.weights is None else float(lookup.weights[position])
                row = int(lookup.ids[position])
                multiplicity[row] = multiplicity.get(row, 0.0) + weight
            for row, m in multiplicity.items():
                part = [Fraction(m) * Fraction(x) for x in d]
                size += sum(x * x for x in part)
                total = rows.setdefault((lookup.table, row), [Fraction(0)] * len(d))
                rows[lookup.table, row] = [x + y for x, y in zip(total, part, strict=True)]
    return rows, size


def is_finite(case: Case, example: int) -> bool:
    """Whether every number of the example is finite, so that it has an exact gradient."""
    return bool(np.isfinite(case.dense[example])) and all(
        np.isfinite(gradients[lookup.example_of_bag == example]).all()
        for lookup, gradients in zip(case.lookups, case.pooled, strict=True)
    )


# --- the checks -------------------------------------------------------------------------------------------------------


def check_S1(case: Case, clipped: Clipped) -> None:
    """Each example's integers, with its dense part, lie within the clip norm: in exact arithmetic."""
    limit = Fraction(case.clip_norm) ** 2
    unit = Fraction(4) ** case.exponent
    for b in range(case.examples):
        squares = sum(
            int(x) ** 2 for of_rows in clipped.integers[b].values() for v in of_rows.values() for x in v.tolist()
        )
        dense = Fraction(float(clipped.factors[b])) ** 2 * Fraction(float(case.dense[b])) if is_finite(case, b) else 0
        assert squares * unit + dense <= limit, f"S1: example {b} of {case.note}"


def check_norms(case: Case, clipped: Clipped) -> None:
    """n is never below the exact squared norm, and not above it by more than the stated margin.

    Float64 sums of fewer than 200 terms are within 2^-44 of the sum of the terms' magnitudes; that sum is at most
    (number of bags) * size by Cauchy-Schwarz, and here at most 12 bags: 2^-40 * size covers it from below, and
    2^-39 * size with a relative 2^-44 of the dense part bounds it from above.
    """
    for b in range(case.examples):
        if not (is_finite(case, b) and math.isfinite(clipped.norms[b])):
            continue
        rows, size = written_out(case, b)
        exact = sum((x * x for v in rows.values() for x in v), Fraction(float(case.dense[b])))
        found = Fraction(float(clipped.norms[b]))
        assert exact * (1 - Fraction(1, 2**44)) <= found, f"norms: example {b} of {case.note} is below its norm"
        assert found <= exact * (1 + Fraction(1, 2**44)) + size / 2**39, f"norms: example {b} of {case.note}"


def check_contributions(case: Case, clipped: Clipped) -> None:
    """Every integer is the exact clipped gradient truncated toward zero, up to float64 rounding of the product."""
    for b in range(case.examples):
        if clipped.factors[b] == 0 or not is_finite(case, b):
            assert all(not v.any() for of_rows in clipped.integers[b].values() for v in of_rows.values())
            continue
        rows, size = written_out(case, b)
        found = {(t, row): v.tolist() for t, of_rows in clipped.integers[b].items() for row, v in of_rows.items()}
        assert set(found) == set(rows), f"contributions: example {b} of {case.note} touches other rows"
        scale = Fraction(float(clipped.factors[b])) / Fraction(2) ** case.exponent
        # Rounding: fewer than 16 float64 operations, none larger than the parts of the sum.
        slack = Fraction(math.sqrt(size)) * scale / 2**48
        for key, gradient in rows.items():
            for integer, x in zip(found[key], gradient, strict=True):
                exact = x * scale
                assert abs(integer) <= abs(exact) + slack, f"contributions: {key} of {case.note} grew"
                assert abs(integer - exact) < 1 + slack, f"contributions: {key} of {case.note}"


def check_factors(case: Case, clipped: Clipped) -> None:
    """Factors are 1 inside the clip norm, bring the rest to it and not further, and are 0 for what has no norm."""
    for norm, factor in zip(clipped.norms.tolist(), clipped.factors.tolist(), strict=True):
        if not (math.isfinite(norm) and norm >= 0):
            assert factor == 0, f"factors: {case.note}"
        else:
            assert 0 < factor <= 1
            assert factor * math.sqrt(norm) <= case.clip_norm
            if factor < 1:
                assert factor * math.sqrt(norm) == pytest.approx(case.clip_norm, rel=2.0**-19)
    for b in range(case.examples):
        if not is_finite(case, b):
            assert clipped.factors[b] == 0, f"factors: example {b} of {case.note} is not finite"


CHECKS: dict[str, Callable[[Case, Clipped], None]] = {
    "S1": check_S1,
    "norms": check_norms,
    "contributions": check_contributions,
    "factors": check_factors,
}


# --- generated batches ------------------------------------------------------------------------------------------------

WEIGHTS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5, -2.0]), st.floats(-8, 8, width=32), st.sampled_from([2.0**30, -(2.0**30)])
)
GRADIENTS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.25, 1e-30, -1e-3]),
    st.floats(-4, 4, width=32),
    st.floats(-(2.0**100), 2.0**100, width=32),
)
WILD = st.one_of(GRADIENTS, st.sampled_from([math.inf, -math.inf, math.nan, 3.4028234663852886e38]))


@st.composite
def cases(draw: st.DrawFn, numbers: st.SearchStrategy[float] = GRADIENTS) -> Case:
    """Few rows and several calls, so that bags of an example share rows; some calls hand back negated gradients."""
    examples = draw(st.integers(1, 3))
    width = {table: draw(st.sampled_from([1, 3, 8, 11])) for table in TABLES}
    lookups: list[Lookup] = []
    pooled: list[np.ndarray] = []
    for _ in range(draw(st.integers(1, 4))):
        table = draw(st.sampled_from(TABLES))
        bags = sorted(draw(st.lists(st.integers(0, examples - 1), min_size=0, max_size=4)))
        sizes = draw(st.lists(st.integers(0, 4), min_size=len(bags), max_size=len(bags)))
        ids = draw(st.lists(st.integers(0, 3), min_size=sum(sizes), max_size=sum(sizes)))
        pooling = draw(st.sampled_from(Pooling))
        weights = None
        if pooling is Pooling.SUM and draw(st.booleans()):
            weights = np.array(draw(st.lists(WEIGHTS, min_size=len(ids), max_size=len(ids))), dtype=np.float32)
        lookup = Lookup(
            table,
            np.array(ids, dtype=np.int64),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            np.array(bags, dtype=np.int64),
            pooling,
            weights,
        )
        twin = next((i for i, other in enumerate(lookups) if other.table == table and other.bags == lookup.bags), None)
        if twin is not None and draw(st.booleans()):
            with np.errstate(over="ignore"):
                gradient = -pooled[twin] * np.float32(draw(st.sampled_from([1.0, 1.0 + 2.0**-20, 0.5])))
        else:
            count = lookup.bags * width[table]
            flat = draw(st.lists(numbers, min_size=count, max_size=count))
            gradient = np.array(flat, dtype=np.float32).reshape(lookup.bags, width[table])
        lookups.append(lookup)
        pooled.append(gradient)
    dense = np.array([draw(st.sampled_from([0.0, 1e-6, 0.5, 1.0, 1e12])) for _ in range(examples)])
    clip_norm = draw(st.sampled_from([1.0, 0.7, 3.3, 1e-3, 2.0**-7, 1234.5]))
    return Case(examples, lookups, pooled, dense, clip_norm, "generated")


@given(case=cases())
@settings(max_examples=150, deadline=None)
def test_S1_S2_S3_every_example_is_clipped_as_one_vector(case):
    clipped = clip(case)
    for check in CHECKS.values():
        check(case, clipped)


@given(case=cases(numbers=WILD))
@settings(max_examples=60, deadline=None)
def test_S4_gradients_that_are_not_finite_contribute_nothing(case):
    clipped = clip(case)
    for check in CHECKS.values():
        check(case, clipped)


def without(case: Case, example: int) -> Case:
    """The same batch with one example removed and the later ones moved up."""
    lookups: list[Lookup] = []
    pooled: list[np.ndarray] = []
    for lookup, gradients in zip(case.lookups, case.pooled, strict=True):
        keep = lookup.example_of_bag != example
        sizes = np.diff(lookup.offsets)
        of_ids = np.repeat(keep, sizes)
        left = lookup.example_of_bag[keep]
        lookups.append(
            Lookup(
                lookup.table,
                lookup.ids[of_ids],
                np.concatenate([[0], np.cumsum(sizes[keep])]).astype(np.int64),
                left - (left > example),
                lookup.pooling,
                None if lookup.weights is None else lookup.weights[of_ids],
            )
        )
        pooled.append(gradients[keep])
    return Case(case.examples - 1, lookups, pooled, np.delete(case.dense, example), case.clip_norm, case.note)


def sums_of(case: Case) -> dict[tuple[str, int], list[int]]:
    factors = clip_factors(square_norms(case.lookups, case.pooled, case.dense, TABLES), case.clip_norm)
    sums = gradient_sums(case.lookups, case.pooled, factors, case.exponent, TABLES)
    for table, rows in sums.rows.items():
        assert rows.dtype == sums.sums[table].dtype == np.int64
        assert (np.diff(rows) > 0).all()
        assert len(rows) == len(sums.sums[table])
    return {
        (table, row): sums.sums[table][i].tolist()
        for table in sums.rows
        for i, row in enumerate(sums.rows[table].tolist())
    }


@given(case=cases(numbers=WILD))
@settings(max_examples=60, deadline=None)
def test_S1_removing_one_example_moves_the_sums_by_at_most_the_clip_norm(case):
    whole = sums_of(case)
    for b in range(case.examples):
        rest = sums_of(without(case, b))
        assert set(rest) <= set(whole)
        moved = sum(
            (x - y) ** 2 for key, v in whole.items() for x, y in zip(v, rest.get(key, [0] * len(v)), strict=True)
        )
        assert moved * Fraction(4) ** case.exponent <= Fraction(case.clip_norm) ** 2


@given(case=cases(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_S5_the_sums_are_those_of_the_examples_one_by_one_in_any_order(case, seed):
    total: dict[tuple[str, int], list[int]] = {}
    for b in np.random.default_rng(seed).permutation(case.examples).tolist():
        alone = case
        for other in reversed([o for o in range(case.examples) if o != b]):
            alone = without(alone, other)
        for key, v in sums_of(alone).items():
            total[key] = [x + y for x, y in zip(total.get(key, [0] * len(v)), v, strict=True)]
    assert total == sums_of(case)


# --- cases that each name their bug, and faults that the checks must reject -------------------------------------------


def lookup_of(
    table: str, bags: list[list[int]], *, pooling: Pooling = Pooling.SUM, weights: list[float] | None = None
) -> Lookup:
    """One bag per example."""
    return Lookup(
        table,
        np.array([i for bag in bags for i in bag], dtype=np.int64),
        np.cumsum([0, *map(len, bags)]).astype(np.int64),
        np.arange(len(bags), dtype=np.int64),
        pooling,
        None if weights is None else np.array(weights, dtype=np.float32),
    )


def f32(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


NONE = np.zeros(1)
CORPUS = {
    "the same id twenty times in a bag": Case(1, [lookup_of("a", [[5] * 20])], [f32([3.0, -4.0])], NONE),
    "two features share a table and a row": Case(
        1, [lookup_of("a", [[1]]), lookup_of("a", [[1, 2]])], [f32([3.0, 1.0]), f32([3.0, 1.0])], NONE
    ),
    "two tables": Case(1, [lookup_of("a", [[1]]), lookup_of("b", [[1]])], [f32([0.9, 0.1]), f32([0.9, 0.2])], NONE),
    "a large dense part": Case(1, [lookup_of("a", [[1]])], [f32([0.9, 0.1])], np.array([100.0])),
    "weights of either sign": Case(
        1, [lookup_of("a", [[1, 2, 1, 3]], weights=[2.0, -3.0, 4.0, 0.5])], [f32([1.0, -2.0, 0.5])], NONE
    ),
    # In products of single weights the square of 2^-5 is lost beside that of 2^30, and the row seems to weigh nothing.
    "weights that cancel but for a rest": Case(
        1, [lookup_of("a", [[1, 1, 1]], weights=[2.0**30, -(2.0**30), 2.0**-5])], [f32([2.0**40, 0.0])], NONE
    ),
    "mean of a bag": Case(1, [lookup_of("a", [[1, 2, 2]], pooling=Pooling.MEAN)], [f32([0.3, -0.3])], NONE),
    "an empty bag beside a full one": Case(
        2, [lookup_of("a", [[], [3]], pooling=Pooling.MEAN)], [f32([7.0, 7.0], [0.25, 0.5])], np.zeros(2)
    ),
    "small negative coordinates": Case(1, [lookup_of("a", [[1]])], [f32([-0.3 * 2.0**-32, 0.1, -0.1])], NONE),
    "an infinite gradient": Case(1, [lookup_of("a", [[1]])], [f32([math.inf, 1.0])], NONE),
    "no number at all": Case(1, [lookup_of("a", [[1]])], [f32([math.nan, 1.0])], NONE),
    "gradients that cancel": Case(
        1, [lookup_of("a", [[1]]), lookup_of("a", [[1]])], [f32([1e6, 3.0]), f32([-1e6, 3.0])], NONE
    ),
    "a clip norm that is no power of two": Case(1, [lookup_of("a", [[1]])], [f32([5.0, 5.0])], NONE, 0.7),
}
for _name, _case in CORPUS.items():
    _case.note = _name


@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_passes_every_check(name):
    clipped = clip(CORPUS[name])
    for check in CHECKS.values():
        check(CORPUS[name], clipped)


def floor(x: np.ndarray, scale: float) -> np.ndarray:
    return np.floor(x * scale).astype(np.int64) if scale else np.zeros(x.shape, dtype=np.int64)


def to_nearest(x: np.ndarray, scale: float) -> np.ndarray:
    return np.rint(x * scale).astype(np.int64) if scale else np.zeros(x.shape, dtype=np.int64)


def each_row_once(p: clipping.Bag, q: clipping.Bag) -> float:
    return float(len(p.multiplicity.keys() & q.multiplicity.keys()))


def only_within_a_bag(p: clipping.Bag, q: clipping.Bag) -> float:
    return sum(m * m for m in p.multiplicity.values()) if p is q else 0.0


def positive_parts(p: clipping.Bag, q: clipping.Bag) -> float:
    return sum(max(m, 0.0) * max(q.multiplicity.get(r, 0.0), 0.0) for r, m in p.multiplicity.items())


def clip_each_table(case: Case) -> Clipped:
    """Fault: every table is clipped to C by itself."""
    factors, integers = np.ones(case.examples), [{} for _ in range(case.examples)]
    norms = square_norms(case.lookups, case.pooled, case.dense, TABLES)
    for table in TABLES:
        mine = [i for i, lookup in enumerate(case.lookups) if lookup.table == table]
        lookups, pooled = [case.lookups[i] for i in mine], [case.pooled[i] for i in mine]
        factors = clip_factors(square_norms(lookups, pooled, np.zeros(case.examples), TABLES), case.clip_norm)
        for b, of_tables in enumerate(contributions(lookups, pooled, factors, case.exponent, TABLES)):
            integers[b].update(of_tables)
    return Clipped(norms, factors, integers)


def ignore_dense(case: Case) -> Clipped:
    """Fault: the norm of the dense part is left out."""
    norms = square_norms(case.lookups, case.pooled, np.zeros(case.examples), TABLES)
    factors = clip_factors(norms, case.clip_norm)
    return Clipped(norms, factors, contributions(case.lookups, case.pooled, factors, case.exponent, TABLES))


def keep_everything(case: Case) -> Clipped:
    """Fault: an infinite norm gives a factor of one."""
    norms = square_norms(case.lookups, case.pooled, case.dense, TABLES)
    factors = np.where(np.isfinite(norms), clip_factors(norms, case.clip_norm), 1.0)
    return Clipped(norms, factors, contributions(case.lookups, case.pooled, factors, case.exponent, TABLES))


def products_of_single_weights(case: Case) -> Clipped:
    """Fault: M_pp from pairs of occurrences, in float64, in the order of the ids."""
    norms = square_norms(case.lookups, case.pooled, case.dense, TABLES)
    for lookup, gradients in zip(case.lookups, case.pooled, strict=True):
        if lookup.weights is None or len(case.lookups) > 1:
            continue
        order = sorted(range(lookup.ids.size), key=lambda i: abs(float(lookup.weights[i])))  # the unlucky order
        overlap = 0.0
        for i in order:
            for j in order:
                if lookup.ids[i] == lookup.ids[j]:
                    overlap = overlap + float(lookup.weights[i]) * float(lookup.weights[j])
        d = gradients[0].astype(np.float64)
        norms = case.dense + overlap * dot(d, d)
    factors = clip_factors(norms, case.clip_norm)
    return Clipped(norms, factors, contributions(case.lookups, case.pooled, factors, case.exponent, TABLES))


def undivided_mean(case: Case) -> Clipped:
    """Fault: the gradient of a mean is not divided by the count."""
    as_sums = [Lookup(x.table, x.ids, x.offsets, x.example_of_bag, Pooling.SUM, x.weights) for x in case.lookups]
    return clip(Case(case.examples, as_sums, case.pooled, case.dense, case.clip_norm, case.note))


FAULTS = [
    ("truncation toward minus infinity", {"_truncate": floor}, clip, "contributions", "small negative coordinates"),
    ("rounding to nearest", {"_truncate": to_nearest}, clip, "contributions", "a clip norm that is no power of two"),
    ("duplicates once", {"_overlap": each_row_once}, clip, "S1", "the same id twenty times in a bag"),
    ("bags apart", {"_overlap": only_within_a_bag}, clip, "S1", "two features share a table and a row"),
    ("negative weights ignored", {"_overlap": positive_parts}, clip, "norms", "weights of either sign"),
    ("products of single weights", {}, products_of_single_weights, "S1", "weights that cancel but for a rest"),
    ("per-table clip", {}, clip_each_table, "S1", "two tables"),
    ("dense part left out", {}, ignore_dense, "S1", "a large dense part"),
    ("infinite norms kept", {}, keep_everything, "factors", "an infinite gradient"),
    ("NaN kept", {}, keep_everything, "factors", "no number at all"),
    ("mean not divided", {}, undivided_mean, "contributions", "mean of a bag"),
]


@pytest.mark.parametrize(("fault", "patches", "rule", "check", "case"), FAULTS, ids=[f[0] for f in FAULTS])
def test_the_checks_reject_a_seeded_fault(fault, patches, rule, check, case, monkeypatch):
    for name, replacement in patches.items():
        monkeypatch.setattr(clipping, name, replacement)
    with np.errstate(invalid="ignore"), pytest.raises(AssertionError, match=check):
        CHECKS[check](CORPUS[case], rule(CORPUS[case]))


# --- small exact facts ------------------------------------------------------------------------------------------------


@given(dim=st.integers(1, 40), seed=st.integers(0, 10_000), spread=st.sampled_from([0, 30]))
@settings(max_examples=60, deadline=None)
def test_dot_adds_eight_lanes_and_then_a_fixed_tree(dim, seed, spread):
    rng = np.random.default_rng(seed)
    d, e = (rng.normal(size=dim) * 2.0 ** rng.integers(-spread, spread + 1, dim) for _ in range(2))
    lanes = [0.0] * 8
    for i in range(dim):
        lanes[i % 8] += float(d[i]) * float(e[i])
    a = [lanes[0] + lanes[4], lanes[2] + lanes[6], lanes[1] + lanes[5], lanes[3] + lanes[7]]
    assert dot(d, e) == (a[0] + a[1]) + (a[2] + a[3])


def test_norms_are_the_formula_of_the_document_bit_for_bit():
    """Three calls on one table, in Python floats, in the order that docs/arithmetic.md gives."""
    calls = [[1, 2, 1], [2, 3], [1]]
    d = [f32([0.1, 0.7]), f32([-0.3, 0.2]), f32([0.9, -0.4])]
    n = 0.123
    for p in range(3):
        for q in range(p, 3):
            m = float(sum(calls[p].count(r) * calls[q].count(r) for r in set(calls[p])))
            if m != 0:
                n = n + ((2.0 if p != q else 1.0) * m) * dot(d[p][0].astype(np.float64), d[q][0].astype(np.float64))
        own = float(sum(calls[p].count(r) ** 2 for r in set(calls[p])))
        n = n + 2.0**-40 * (own * dot(d[p][0].astype(np.float64), d[p][0].astype(np.float64)))
    case = Case(1, [lookup_of("a", [ids]) for ids in calls], d, np.array([0.123]))
    assert square_norms(case.lookups, case.pooled, case.dense, TABLES)[0] == n


def test_clip_factors_at_their_edges():
    target = 0.7 * (1 - 2.0**-20)
    below, above = math.nextafter(target, 0) ** 2, (target * 1.001) ** 2
    assert clip_factors(np.array([0.0, below]), 0.7).tolist() == [1.0, 1.0]
    assert clip_factors(np.array([above]), 0.7)[0] == target / math.sqrt(above)
    assert clip_factors(np.array([math.inf, -math.inf, math.nan, -1e-9]), 0.7).tolist() == [0.0] * 4


def test_a_clipped_example_can_come_within_a_millionth_of_the_clip_norm():
    """The margin costs less than 2^-19 of an example's influence: S1 is not met by clipping too hard."""
    case = CORPUS["a clip norm that is no power of two"]
    (of_tables,) = clip(case).integers
    norm = math.sqrt(sum(int(x) ** 2 for x in of_tables["a"][1])) * 2.0**case.exponent
    assert 0.7 * (1 - 2.0**-19) < norm <= 0.7
