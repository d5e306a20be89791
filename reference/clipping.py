"""Joint per-example clipping, and gradient sums in exact integers.

An example's gradient spans every table and every dense parameter; it is clipped as one vector. docs/arithmetic.md
("Clipping", "Contributions and their sum") gives every rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from samelaw.contract.spec import CANCELLATION_MARGIN
from samelaw.contract.trace import GradientSums, Lookup, Pooling
from samelaw.reference.truncation import batch_sum, clip_factor, contribution

LANES = 8


@dataclass(frozen=True, repr=False)
class Bag:
    """One bag of one example: its rows with their multiplicities, and the gradient of the example's loss there.

    Attributes:
        multiplicity: row -> m(r), the sum of the weights of the row's occurrences, rows by first occurrence.
        gradient: d(loss)/d(sum of the weighted rows), float64: for mean pooling already divided by the count.
    """

    multiplicity: dict[int, float]
    gradient: Float64[np.ndarray, "dim"]


def square_norms(
    lookups: Sequence[Lookup],
    pooled: Sequence[Float32[np.ndarray, "_bags _dim"]],
    dense_square_norms: Float64[np.ndarray, "examples"],
    table_order: Sequence[str],
) -> Float64[np.ndarray, "examples"]:
    """Squared L2 norm of each example's whole gradient, from above.

    With x_r = sum over bags p of m_p(r) * d_p, the gradient of row r,

        sum_r |x_r|^2  =  sum over pairs of bags p, q of  M_pq * <d_p, d_q>,   M_pq = sum_r m_p(r) * m_q(r),

    so the norm needs no gradient of the size of a table. Multiplicities are the very numbers that `contributions`
    multiplies by; taking products of single weights in their place would let weights of opposite sign cancel in M
    but not in x.

    Args:
        lookups: every table call of the batch, in call order.
        pooled: for each call, the gradient of each example's own loss with respect to its pooled bags.
        dense_square_norms: squared norm over the dense parameters.
        table_order: table names, sorted.

    Guarantees:
        S2  Bags that share rows, repeated ids and weights of either sign are counted exactly; a relative 2^-40 of
            every bag's own square is added, so that rounding cannot push the result below the true value where large
            terms cancel. (With P bags of one table in an example the float64 sums err by less than
            (P^3 / 2 + 2P^2 + P * dim / 8) * 2^-53 of the bags' squares, were all errors to point the same way:
            below the margin up to P = 16 and dim = 1024. Cancelling gradients of 800 bags erred by 1 % of it.)

    Source: Goodfellow, "Efficient per-example gradient computations", arXiv 1510.01799, for the idea.
    """
    norms = dense_square_norms.astype(np.float64)
    for table in table_order:
        for example, bags in _bags_by_example(lookups, pooled, table).items():
            n = float(norms[example])
            for i, p in enumerate(bags):
                for q in bags[i:]:
                    overlap = _overlap(p, q)
                    if overlap != 0:
                        n = n + (1.0 if q is p else 2.0) * overlap * dot(p.gradient, q.gradient)
                n = n + CANCELLATION_MARGIN * (_overlap(p, p) * dot(p.gradient, p.gradient))
            norms[example] = n
    return norms


def clip_factors(square_norms: Float64[np.ndarray, "examples"], clip_norm: float) -> Float64[np.ndarray, "examples"]:
    """The factor f in [0, 1] by which each example's gradient is multiplied.

    Args:
        square_norms: as above; may hold infinities and NaN.
        clip_norm: C > 0.

    Guarantees:
        S3  f * norm <= C * (1 - 2^-20) up to float64 rounding, which the margin of 2^-20 covers.
        S4  f = 0 where the square norm is not a finite number >= 0: such an example contributes nothing.
    """
    factors = np.zeros(square_norms.shape, dtype=np.float64)
    for example, square in enumerate(square_norms.tolist()):
        if math.isfinite(square) and square >= 0:
            factors[example] = clip_factor(square, clip_norm)
    return factors


def contributions(
    lookups: Sequence[Lookup],
    pooled: Sequence[Float32[np.ndarray, "_bags _dim"]],
    factors: Float64[np.ndarray, "examples"],
    exponent: int,
    table_order: Sequence[str],
) -> list[dict[str, dict[int, Int64[np.ndarray, "dim"]]]]:
    """Each example's clipped gradient, as integers in units of 2^exponent: example -> table -> row -> vector.

    Guarantees:
        S1  Over all tables, an example's integers have L2 norm <= C * 2^-exponent: truncation toward zero can only
            shrink a coordinate.
    """
    clipped: list[dict[str, dict[int, Int64[np.ndarray, "dim"]]]] = [{} for _ in range(factors.size)]
    for table in table_order:
        for example, bags in _bags_by_example(lookups, pooled, table).items():
            scale = math.ldexp(float(factors[example]), -exponent)
            clipped[example][table] = {row: _truncate(x, scale) for row, x in _row_gradients(bags).items()}
    return clipped


def gradient_sums(
    lookups: Sequence[Lookup],
    pooled: Sequence[Float32[np.ndarray, "_bags _dim"]],
    factors: Float64[np.ndarray, "examples"],
    exponent: int,
    table_order: Sequence[str],
) -> GradientSums:
    """Contributions added over the batch, for the rows that any example touched. The dense sum is left empty.

    Guarantees:
        S1  Adding or removing one example moves the integers of all tables together by an L2 distance of at most
            C * 2^-exponent.
        S5  The sum does not depend on the order of the examples: it is exact.
    """
    parts: dict[str, dict[int, list[Int64[np.ndarray, "dim"]]]] = {}
    for example in contributions(lookups, pooled, factors, exponent, table_order):
        for table, of_rows in example.items():
            for row, part in of_rows.items():
                parts.setdefault(table, {}).setdefault(row, []).append(part)
    sums = GradientSums(exponent, factors=factors)
    for table in table_order:
        if parts.get(table):
            rows = sorted(parts[table])
            sums.rows[table] = np.array(rows, dtype=np.int64)
            sums.sums[table] = np.stack(
                [batch_sum(parts[table][row], np.zeros_like(parts[table][row][0])) for row in rows]
            )
    return sums


def dot(d: Float64[np.ndarray, "dim"], e: Float64[np.ndarray, "dim"]) -> float:
    """The float64 dot product in the order that every backend uses: eight lanes, then a fixed tree."""
    lanes = np.zeros(LANES, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite gradients are met by S4
        for start in range(0, d.size, LANES):
            products = d[start : start + LANES] * e[start : start + LANES]
            lanes[: products.size] = lanes[: products.size] + products
    l0, l1, l2, l3, l4, l5, l6, l7 = lanes.tolist()
    return ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7))


def _bags_by_example(
    lookups: Sequence[Lookup], pooled: Sequence[Float32[np.ndarray, "_bags _dim"]], table: str
) -> dict[int, list[Bag]]:
    """One table's bags of each example: calls in order, within a call bags in order."""
    examples: dict[int, list[Bag]] = {}
    for lookup, gradients in zip(lookups, pooled, strict=True):
        if lookup.table != table:
            continue
        for bag in range(lookup.bags):
            span = slice(int(lookup.offsets[bag]), int(lookup.offsets[bag + 1]))
            ids = lookup.ids[span].tolist()
            weights = [1.0] * len(ids) if lookup.weights is None else lookup.weights[span].tolist()
            multiplicity: dict[int, float] = {}
            for row, weight in zip(ids, weights, strict=True):
                multiplicity[row] = multiplicity.get(row, 0.0) + weight
            gradient = gradients[bag].astype(np.float64)
            if lookup.pooling is Pooling.MEAN and ids:
                gradient = gradient / len(ids)
            examples.setdefault(int(lookup.example_of_bag[bag]), []).append(Bag(multiplicity, gradient))
    return examples


def _overlap(p: Bag, q: Bag) -> float:
    """M_pq = sum over rows of m_p(r) * m_q(r), in the order of p's rows."""
    total = 0.0
    for row, weight in p.multiplicity.items():
        if row in q.multiplicity:
            total = total + weight * q.multiplicity[row]
    return total


def _row_gradients(bags: Sequence[Bag]) -> dict[int, Float64[np.ndarray, "dim"]]:
    """x_r = sum over the bags that hold row r, in order, of m(r) * d."""
    gradients: dict[int, Float64[np.ndarray, "dim"]] = {}
    for bag in bags:
        for row, weight in bag.multiplicity.items():
            before = gradients[row] if row in gradients else np.zeros_like(bag.gradient)
            with np.errstate(invalid="ignore", over="ignore"):  # infinite gradients are met by S4
                gradients[row] = before + weight * bag.gradient
    return gradients


def _truncate(x: Float64[np.ndarray, "dim"], scale: float) -> Int64[np.ndarray, "dim"]:
    """x * scale toward zero. A scale of zero contributes zeros, whatever x holds."""
    return np.zeros(x.shape, dtype=np.int64) if scale == 0 else contribution(x, scale)
