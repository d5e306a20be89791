"""The CPU backend draws the very bits of the definition, at every address that a run can reach."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from samelaw.contract.errors import AddressError, InputError
from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose
from samelaw.fast.cpu import CpuKernels
from samelaw.reference import noise as definition
from samelaw.reference.sampling import poisson_sample

KERNELS = CpuKernels()
DIMS = (1, 3, 8, 15, 16, 17, 64, 128, 300)
STREAM = NoiseStream(NoiseKey.from_seed(20261122))


def same_bits(found: torch.Tensor, expected: np.ndarray) -> bool:
    """Equal to the last bit, the sign of zero included."""
    array = found.detach().numpy()
    words = {4: np.int32, 8: np.int64}[array.dtype.itemsize]
    return array.dtype == expected.dtype and np.array_equal(array.view(words), expected.view(words))


def stream_of(seed: int, rounds: int) -> NoiseStream:
    return NoiseStream(NoiseKey.from_seed(seed), rounds)


ROUNDS = st.sampled_from((8, 12, 20))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    rounds=ROUNDS,
    purpose=st.sampled_from(list(Purpose)),
    table=st.integers(0, 2**16 - 1),
    rows=st.lists(st.integers(0, 2**48 - 1), max_size=20),
    step=st.integers(0, 2**32 - 1),
    dim=st.sampled_from(DIMS),
)
@example(seed=1, rounds=12, purpose=Purpose.REPLAY, table=2**16 - 1, rows=[2**48 - 1, 0], step=2**32 - 1, dim=17)
def test_normals_are_the_definition_at_every_address(seed, rounds, purpose, table, rows, step, dim):
    stream = stream_of(seed, rounds)
    where = np.array(rows, dtype=np.int64)
    expected = definition.normals(stream, purpose, table, where, step, dim=dim)
    assert same_bits(KERNELS.normals(stream, purpose, table, torch.from_numpy(where), step, dim), expected)


@pytest.mark.parametrize("bits", [8, 15, 16, 31, 32, 33, 40, 47])
def test_rows_around_each_power_of_two_keep_their_own_addresses(bits):
    rows = np.array([2**bits - 1, 2**bits, 2**bits + 1], dtype=np.int64)
    steps = np.array([2**31 - 1, 2**31, 2**32 - 1], dtype=np.int64)
    drawn = KERNELS.normals(STREAM, Purpose.BRIDGE, 7, torch.from_numpy(rows), torch.from_numpy(steps), 24)
    assert same_bits(drawn, definition.normals(STREAM, Purpose.BRIDGE, 7, rows, steps, dim=24))


def test_ten_million_draws_have_the_bits_of_the_definition():
    for step in (0, 1, 99_991, 2**31, 2**32 - 1):
        rows = np.arange(2**33, 2**33 + 31_250, dtype=np.int64)
        drawn = KERNELS.normals(STREAM, Purpose.AGGREGATE, 1, torch.from_numpy(rows), step, 64)
        assert same_bits(drawn, definition.normals(STREAM, Purpose.AGGREGATE, 1, rows, step, dim=64))


def test_blocks_beyond_the_first_sixteen_bits_are_reached():
    # Block 70,000 needs more than 16 bits of the counter's last word, which also holds the purpose.
    dim = 16 * 70_001
    drawn = KERNELS.normals(STREAM, Purpose.DENSE, 0, torch.zeros(1, dtype=torch.int64), 5, dim)
    expected = definition.normals(STREAM, Purpose.DENSE, 0, np.zeros(1, dtype=np.int64), 5, dim=dim)
    assert same_bits(drawn[:, -40:].contiguous(), np.ascontiguousarray(expected[:, -40:]))


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 4096, 4097, 70_001])
def test_dense_noise_is_one_row_of_the_flattened_parameter(size):
    before = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    scale = np.float32(0.037)
    param = torch.from_numpy(before.copy())
    KERNELS.subtract_noise(param, STREAM, Purpose.DENSE, 3, 41, float(scale))
    if size:
        z = definition.normals(STREAM, Purpose.DENSE, 3, np.zeros(1, dtype=np.int64), 41, dim=size)[0]
        assert same_bits(param, before - scale * z)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    rounds=ROUNDS,
    step=st.integers(0, 2**32 - 1),
    rate=st.one_of(st.sampled_from((1.0, 2.0**-64, 0.5, 1 - 2.0**-53)), st.floats(1e-6, 1.0)),
    examples=st.integers(0, 2000),
)
def test_the_sample_of_a_step_is_the_definition(seed, rounds, step, rate, examples):
    stream = stream_of(seed, rounds)
    expected = poisson_sample(stream, step, rate, examples)
    assert same_bits(KERNELS.poisson_sample(stream, step, rate, examples), expected)


@pytest.mark.parametrize("rate", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("examples", [16_383, 16_384, 16_385, 50_000])
def test_a_sample_that_spans_several_parts_is_the_definition(rate, examples):
    assert same_bits(KERNELS.poisson_sample(STREAM, 8, rate, examples), poisson_sample(STREAM, 8, rate, examples))


def test_a_part_with_more_drawn_than_expected_is_drawn_again_in_full(monkeypatch):
    # With room for only a handful, every part overflows and takes the path that chance takes once in 10^23.
    monkeypatch.setattr("samelaw.fast.cpu.backend.math.ceil", lambda _: 1)
    assert same_bits(KERNELS.poisson_sample(STREAM, 8, 0.1, 40_000), poisson_sample(STREAM, 8, 0.1, 40_000))


@pytest.mark.parametrize(
    ("table", "rows", "step", "dim"),
    [(2**16, 0, 0, 1), (-1, 0, 0, 1), (0, 2**48, 0, 1), (0, -1, 0, 1), (0, 0, 2**32, 1), (0, 0, -1, 1), (0, 0, 0, 0)],
)
def test_an_address_that_would_wrap_is_refused(table, rows, step, dim):
    with pytest.raises(AddressError):
        KERNELS.normals(STREAM, Purpose.REPLAY, table, torch.tensor([rows]), step, dim)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
def test_a_sampling_rate_outside_its_range_is_refused(rate):
    with pytest.raises(InputError, match="sampling_rate"):
        KERNELS.poisson_sample(STREAM, 0, rate, 10)
