"""A promise is never rounded to a better one."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samelaw.contract.figures import rounded_down, rounded_up

POSITIVE = st.floats(min_value=5e-324, max_value=1e308)


@given(value=POSITIVE, digits=st.integers(1, 8))
def test_rounding_goes_one_way_and_no_further_than_one_unit(value, digits):
    exact = Decimal(repr(value))
    up, down = Decimal(rounded_up(value, digits)), Decimal(rounded_down(value, digits))
    assert 0 < down <= exact <= up
    assert up - down <= Decimal(10) ** (exact.adjusted() - digits + 1)
    assert len(up.normalize().as_tuple().digits) <= digits


@pytest.mark.parametrize(
    ("value", "up", "down"),
    [(4.403848, "4.41", "4.4"), (4.034e-06, "4.04e-06", "4.03e-06"), (1e-05, "1e-05", "1e-05"), (8.0, "8", "8"),
     (0.0, "0", "0"), (1234.5, "1240", "1230"), (math.inf, "inf", "inf"), (math.nan, "nan", "nan")],
)  # fmt: skip
def test_what_a_person_reads(value, up, down):
    assert (rounded_up(value), rounded_down(value)) == (up, down)
