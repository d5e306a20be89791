"""What is checked on entry: the law of a run, lookups, and that neither prints what is private."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from samelaw.contract.errors import InputError
from samelaw.contract.evidence import Disagreement, Verdict
from samelaw.contract.run import StepRecord, Transcript
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import ExecutionOptions, Mode, PrivacySpec
from samelaw.contract.trace import Batch, FeatureBags, GradientSums, Lookup, Pooling

SPEC = PrivacySpec(
    clip_norm=1.0,
    noise_multiplier=1.1,
    sampling_rate=0.01,
    expected_batch_size=64.0,
    delta=1e-6,
    schedule=Schedule.constant(0.1, steps=100),
)


# --- PrivacySpec ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("clip_norm", "expected_batch_size") for value in (0.0, -1.0, math.inf, math.nan)),
        *(("noise_multiplier", value) for value in (-0.1, math.inf, math.nan)),
        *(("sampling_rate", value) for value in (0.0, -0.1, 1.1, math.nan)),
        *(("delta", value) for value in (0.0, 1.0, -1e-9, math.nan)),
        ("rounds", 10),
        ("adjacency", "replace_one"),
    ],
)
def test_a_law_out_of_range_is_refused_by_name_and_value(name, value):
    with pytest.raises(InputError, match=name) as caught:
        dataclasses.replace(SPEC, **{name: value})
    assert repr(value) in str(caught.value)


def test_the_edges_of_the_law_are_inside():
    dataclasses.replace(SPEC, sampling_rate=1.0)
    dataclasses.replace(SPEC, noise_multiplier=0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"clip_norm": 1.5},
        {"noise_multiplier": 1.2},
        {"sampling_rate": 0.02},
        {"expected_batch_size": 65.0},
        {"delta": 1e-7},
        {"mode": Mode.BRIDGE},
        {"rounds": 20},
        {"schedule": Schedule.constant(0.1, steps=101)},
        {"schedule": Schedule.constant(0.2, steps=100)},
        {"schedule": Schedule.piecewise([99], [0.1, 0.2], steps=100)},
    ],
)
def test_every_field_of_the_law_is_in_its_digest(change):
    assert dataclasses.replace(SPEC, **change).digest() != SPEC.digest()
    assert dataclasses.replace(SPEC).digest() == SPEC.digest()


def test_the_law_is_json_and_execution_options_are_no_part_of_it():
    record = json.loads(json.dumps(SPEC.to_json()))
    assert record["mode"] == "replay"
    assert not {f.name for f in dataclasses.fields(ExecutionOptions)} & set(record)


@pytest.mark.parametrize("clip_norm", [1.0, 0.7, 2.0, 2.0000001, 1e-3, 1000.0, 2.0**-7])
def test_the_clip_norm_is_at_most_2_to_the_32_grid_units_and_more_than_half_of_that(clip_norm):
    spec = dataclasses.replace(SPEC, clip_norm=clip_norm)
    units = clip_norm / 2.0**spec.contribution_exponent
    assert 2**31 < units <= 2**32


# --- Lookup -----------------------------------------------------------------------------------------------------------


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def lookup(**changes: object) -> Lookup:
    arguments = {"table": "user", "ids": ints(3, 1, 4, 1), "offsets": ints(0, 2, 2, 4), "example_of_bag": ints(0, 0, 1)}
    return Lookup(**(arguments | changes))


def test_a_well_formed_lookup():
    assert lookup().bags == 3
    assert lookup(ids=ints(), offsets=ints(0), example_of_bag=ints()).bags == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": ints()}, "offsets"),
        ({"offsets": ints(1, 2, 2, 4)}, "offsets"),
        ({"offsets": ints(0, 2, 2, 3)}, "offsets"),
        ({"offsets": ints(0, 3, 2, 4)}, "offsets"),
        ({"example_of_bag": ints(0, 1)}, "example_of_bag"),
        ({"example_of_bag": ints(0, 1, 0)}, "example_of_bag"),
        ({"example_of_bag": ints(-1, 0, 1)}, "example_of_bag"),
        ({"weights": np.ones(3, dtype=np.float32)}, "one weight per id"),
        ({"weights": np.ones(4, dtype=np.float32), "pooling": Pooling.MEAN}, "sum pooling"),
    ],
)
def test_a_malformed_lookup_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        lookup(**change)


@pytest.mark.parametrize(("rows", "bad"), [(4, 4), (3, 3), (1, 3)])
def test_an_id_out_of_range_is_named_with_its_place(rows, bad):
    with pytest.raises(InputError, match=rf"id {bad} at position \d is out of range 0\.\.{rows - 1}"):
        lookup().check_rows(rows)
    with pytest.raises(InputError, match="id -2 at position 1"):
        lookup(ids=ints(3, -2, 4, 1)).check_rows(9)
    lookup().check_rows(5)


# --- what prints ------------------------------------------------------------------------------------------------------


def test_traces_and_gradients_print_shapes_only():
    """The numbers below appear nowhere in the text; only counts do."""
    secret = 918273
    ids = np.full(7, secret, dtype=np.int64)
    sums = GradientSums(-32, {"user": ids}, {"user": np.full((7, 2), secret)}, factors=np.full(3, float(secret)))
    features = (FeatureBags(ids, ints(0, 7)),)
    shown = [
        lookup(ids=ids, offsets=ints(0, 7), example_of_bag=ints(0)),
        features[0],
        Batch(np.full((1, 2), secret, dtype=np.float32), features, np.ones(1, dtype=np.float32), ids[:1]),
        sums,
        StepRecord(0, 1, sums.rows, {}, sums.sums, {}, float(secret)),
        Transcript({"user": np.full((7, 2), secret, dtype=np.float32)}, {}),
    ]
    for value in shown:
        assert str(secret) not in repr(value), type(value)
        assert str(secret) not in str(value), type(value)


def test_only_a_refutation_does_not_hold():
    assert [v for v in Verdict if not v.holds] == [Verdict.REFUTED]
    assert str(Disagreement("row 3", "1.0", "2.0")) == "row 3: expected 1.0, found 2.0"
