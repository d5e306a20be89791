"""Keyed Poisson sampling: exact at its threshold, the same every time, independent over examples and steps."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom

from samelaw.contract.errors import InputError
from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose
from samelaw.reference.noise import address, chacha_block
from samelaw.reference.sampling import poisson_sample

STREAM = NoiseStream(NoiseKey.from_seed(404))

# Every statistical verdict below is at false alarm 1e-9 with a fixed key: it never changes from run to run.
FALSE_ALARM = 1e-9


def words_of(*, step: int, examples: int) -> list[int]:
    """Every example's 64-bit word in Python integers, from docs/arithmetic.md and the block function alone."""
    rows = np.arange(-(-examples // 8), dtype=np.int64)
    counter = address(Purpose.SAMPLING, 0, rows, np.full_like(rows, step), np.zeros_like(rows))
    blocks = chacha_block(STREAM.key.array(), counter, rounds=STREAM.rounds).tolist()
    return [blocks[i // 8][2 * (i % 8)] + (blocks[i // 8][2 * (i % 8) + 1] << 32) for i in range(examples)]


@pytest.mark.parametrize("q", [1 / 3, 0.01, 2.0**-3, math.nextafter(1.0, 0.0), 0.75, 2.0**-64, 2.0**-65, 5e-324])
def test_an_example_joins_exactly_when_its_word_is_below_the_threshold(q):
    threshold = math.floor(Fraction(q) * 2**64)
    drawn = set(poisson_sample(STREAM, 9, q, 203).tolist())
    assert drawn == {i for i, word in enumerate(words_of(step=9, examples=203)) if word < threshold}


@pytest.mark.parametrize("off", [-1, 0, 1])
def test_the_threshold_is_exact_at_a_word_that_was_drawn(off):
    """Rates whose threshold is the largest double at or below an example's word, its neighbours beside it."""
    word = words_of(step=3, examples=18)[17]
    q = float(word >> 11 << 11) / 2.0**64  # 53 bits: exact
    for _ in range(abs(off)):
        q = math.nextafter(q, off)
    assert (17 in poisson_sample(STREAM, 3, q, 18)) == (word < int(q * 2.0**64))


def test_a_word_equal_to_the_threshold_does_not_join():
    """`<`, not `<=`. A threshold has at most 53 significant bits, so a word that has as few is looked for first."""
    words = words_of(step=5, examples=40_000)
    example = next(i for i, word in enumerate(words) if word % (1 << 11) == 0 and word >> 63)
    q = words[example] / 2.0**64
    assert example not in poisson_sample(STREAM, 5, q, example + 1)
    assert example in poisson_sample(STREAM, 5, math.nextafter(q, 1.0), example + 1)


def test_samples_are_ascending_and_repeatable():
    one, two = (poisson_sample(STREAM, 31, 0.2, 1001) for _ in range(2))
    assert np.array_equal(one, two)
    assert one.dtype == np.int64
    assert (np.diff(one) > 0).all()


def test_a_larger_training_set_does_not_change_the_fate_of_earlier_examples():
    small, large = poisson_sample(STREAM, 6, 0.3, 100), poisson_sample(STREAM, 6, 0.3, 1000)
    assert np.array_equal(small, large[large < 100])


def test_rate_one_takes_everyone_and_tiny_rates_nobody():
    assert poisson_sample(STREAM, 0, 1.0, 77).tolist() == list(range(77))
    assert poisson_sample(STREAM, 0, sys.float_info.min, 10_000).size == 0
    assert poisson_sample(STREAM, 0, 0.5, 0).size == 0


@pytest.mark.parametrize("q", [0.5, 0.03, 0.9])
def test_inclusion_frequency_over_examples_and_over_steps(q):
    joined = np.zeros((200, 2000), dtype=bool)
    for step in range(200):
        joined[step, poisson_sample(STREAM, step, q, 2000)] = True
    n = joined.size
    low, high = binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], n, q)
    assert low <= joined.sum() <= high  # a bias of 9 standard errors, 9 * sqrt(q (1-q) / 4e5), would be found
    for counts, trials in ((joined.sum(axis=0), 200), (joined.sum(axis=1), 2000)):
        low, high = binom.ppf([FALSE_ALARM / 4000, 1 - FALSE_ALARM / 4000], trials, q)
        assert low <= counts.min()
        assert counts.max() <= high


@pytest.mark.parametrize("lag", [(0, 1), (1, 0), (0, 7), (0, 8), (1, 1), (2, 0)])
def test_joining_is_independent_across_examples_and_steps(lag):
    """Pairs at a fixed distance join together with probability q^2."""
    q, (steps_apart, examples_apart) = 0.3, lag
    joined = np.zeros((120, 4000), dtype=bool)
    for step in range(120):
        joined[step, poisson_sample(STREAM, step, q, 4000)] = True
    x = (joined - q) / math.sqrt(q * (1 - q))
    products = x[: 120 - steps_apart, : 4000 - examples_apart] * x[steps_apart:, examples_apart:]
    # Products at a fixed lag are uncorrelated with variance 1: a normal statistic over 4.8e5 of them.
    assert abs(products.sum()) / math.sqrt(products.size) < 6.2


def test_other_keys_and_purposes_draw_other_samples():
    other = NoiseStream(NoiseKey.from_seed(405))
    assert not np.array_equal(poisson_sample(STREAM, 0, 0.5, 500), poisson_sample(other, 0, 0.5, 500))
    assert not np.array_equal(poisson_sample(STREAM, 0, 0.5, 500), poisson_sample(STREAM, 1, 0.5, 500))


@pytest.mark.parametrize("q", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_rates_that_are_no_probability_are_refused(q):
    with pytest.raises(InputError, match="sampling_rate"):
        poisson_sample(STREAM, 0, q, 10)
    with pytest.raises(InputError, match="examples"):
        poisson_sample(STREAM, 0, 0.5, -1)
