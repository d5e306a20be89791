"""The GPU backend on a CUDA device: every case of gpu_*_cases.py, then sizes that the interpreter cannot reach.

    python -m pytest -m gpu tests/test_gpu_device.py

Needs torch, triton and numba; no other part of the project is imported. docs/gpu.md has the whole story.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device on this machine", allow_module_level=True)
pytest.importorskip("triton")

sys.path.insert(0, str(Path(__file__).parent))  # the cases are neighbours, whatever way pytest imports test modules
import gpu_cases
from gpu_making import clock_of

from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import Mode
from samelaw.contract.trace import Pooling
from samelaw.fast.cpu import CpuKernels
from samelaw.fast.gpu import GpuKernels
from samelaw.fast.kernels import LookupCall, NoisePlan
from samelaw.reference.settlement import Settlement

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]
STREAM = NoiseStream(NoiseKey.from_seed(90), rounds=12)
ROWS, DIM = 1 << 22, 64


@pytest.fixture(scope="module")
def gpu() -> GpuKernels:
    return GpuKernels("cuda")


@pytest.fixture(scope="module")
def numba() -> CpuKernels:
    return CpuKernels()


def assert_same_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """On the CPU, a piece at a time."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    integer = {4: torch.int32, 8: torch.int64}[found.element_size()]
    for one, two in zip(found.split(1 << 18), expected.split(1 << 18), strict=True):
        same = one.cpu().contiguous().view(integer) == two.contiguous().view(integer)
        assert same.all(), f"{int((~same).sum())} differ, first at {torch.nonzero(~same)[0].tolist()} of a piece"


@pytest.mark.parametrize("name", gpu_cases.CASES)
def test_the_compiled_kernels_have_the_reference_s_bits(name: str, gpu: GpuKernels) -> None:
    gpu_cases.CASES[name](gpu)


@pytest.mark.parametrize("name", gpu_cases.FAULTS)
def test_a_backend_with_this_fault_is_caught(name: str) -> None:
    faulty, caught_by = gpu_cases.FAULTS[name]
    with pytest.raises(AssertionError):
        gpu_cases.CASES[caught_by](faulty("cuda"))


@pytest.mark.parametrize("rounds", [8, 12, 20])
def test_ten_million_normals_equal_numba(rounds: int, gpu: GpuKernels, numba: CpuKernels) -> None:
    stream = NoiseStream(NoiseKey.from_seed(rounds), rounds)
    rng = np.random.default_rng(rounds)
    rows = torch.from_numpy(rng.integers(0, 2**48, 160_000))
    steps = torch.from_numpy(rng.integers(0, 2**32, 160_000))
    found = gpu.normals(stream, Purpose.REPLAY, 7, rows.cuda(), steps.cuda(), DIM)
    assert_same_bits(found, numba.normals(stream, Purpose.REPLAY, 7, rows, steps, DIM))


def test_dense_noise_on_a_large_parameter_equals_numba(gpu: GpuKernels, numba: CpuKernels) -> None:
    param = torch.from_numpy(np.random.default_rng(1).standard_normal(10_000_003).astype(np.float32))
    found = param.cuda()
    gpu.subtract_noise(found, STREAM, Purpose.DENSE, 3, 12345, 0.03125)
    numba.subtract_noise(param, STREAM, Purpose.DENSE, 3, 12345, 0.03125)
    assert_same_bits(found, param)


def test_a_sample_from_ten_million_examples_equals_numba(gpu: GpuKernels, numba: CpuKernels) -> None:
    found = gpu.poisson_sample(STREAM, 99, 0.01, 10_000_001)
    assert found.shape[0] > 90_000
    assert_same_bits(found, numba.poisson_sample(STREAM, 99, 0.01, 10_000_001))


@pytest.mark.parametrize("mode", list(Mode))
def test_a_table_of_four_million_rows_is_settled_as_numba_settles_it(
    mode: Mode, gpu: GpuKernels, numba: CpuKernels
) -> None:
    """Every row, each with its own span, as at a release."""
    steps = 6 if mode is Mode.REPLAY else 1000
    schedule = Schedule.piecewise([steps // 3], [0.05, 0.02], steps=steps)
    plan = NoisePlan(mode, STREAM, clock_of(schedule), 2, DIM)
    rng = np.random.default_rng(5)
    since = torch.from_numpy(rng.integers(0, steps + 1, ROWS))
    weights = torch.from_numpy(rng.standard_normal((ROWS, DIM), dtype=np.float32))
    rows = torch.arange(ROWS)
    found = weights.cuda()
    for part in rows.split(1 << 20):
        gpu.settle(found, part.cuda(), since[part].cuda(), steps, plan)
    numba.settle(weights, rows, since, steps, plan)
    assert_same_bits(found, weights)


@pytest.mark.parametrize(("pooling", "weighted"), [(Pooling.SUM, False), (Pooling.MEAN, False), (Pooling.SUM, True)])
def test_a_batch_on_four_million_rows_equals_numba(
    pooling: Pooling, weighted: bool, gpu: GpuKernels, numba: CpuKernels
) -> None:
    """Batch 2048, 20 ids a bag, Zipf: hot rows meet in many bags. Read, norms, sums and update."""
    rng = np.random.default_rng(7)
    bags, length = 2048, 20
    ids = torch.from_numpy(rng.zipf(1.05, bags * length) % ROWS)
    offsets = torch.arange(bags + 1) * length
    weights = torch.from_numpy(rng.standard_normal(bags * length).astype(np.float32)) if weighted else None
    call = LookupCall(ids, offsets, torch.arange(bags), pooling, weights)
    there = LookupCall(
        ids.cuda(), offsets.cuda(), call.example_of_bag.cuda(), pooling, None if weights is None else weights.cuda()
    )
    table = torch.from_numpy(rng.standard_normal((ROWS, DIM), dtype=np.float32))
    found = table.cuda()
    assert_same_bits(gpu.pool(found, there), numba.pool(table, call))

    gradient = torch.from_numpy(rng.standard_normal((bags, DIM)).astype(np.float32))
    start = torch.from_numpy(rng.random(bags))
    norms = numba.square_norms([call], [gradient], start)
    assert_same_bits(gpu.square_norms([there], [gradient.cuda()], start.cuda()), norms)

    factors = 1 / torch.from_numpy(np.maximum(1.0, np.sqrt(norms.numpy())))
    rows, sums = numba.gradient_sums([call], [gradient], factors, -32)
    first = gpu.gradient_sums([there], [gradient.cuda()], factors.cuda(), -32)
    assert_same_bits(first[0], rows)
    for _ in range(5):  # atomic additions land in another order each time
        assert_same_bits(gpu.gradient_sums([there], [gradient.cuda()], factors.cuda(), -32)[1], sums)

    gpu.update(found, [there], [gradient.cuda()], factors.cuda(), -32, 0.125)
    numba.update(table, [call], [gradient], factors, -32, 0.125)
    assert_same_bits(found, table)


def test_due_rows_among_four_million(gpu: GpuKernels, numba: CpuKernels) -> None:
    rng = np.random.default_rng(11)
    history = torch.from_numpy(rng.integers(0, 100, ROWS, dtype=np.int32))
    ids = torch.from_numpy(rng.integers(0, ROWS, 1_000_000))
    there = history.cuda()
    for until in (50, 80):
        found = gpu.due_rows(there, ids.cuda(), until)
        expected = numba.due_rows(history, ids, until)
        assert_same_bits(found[0], expected[0])
        assert_same_bits(found[1], expected[1])
    assert_same_bits(there, history)


def test_a_table_of_more_than_two_to_the_31_elements(gpu: GpuKernels) -> None:
    """Offsets beyond 32 bits: the last rows are paid, read and updated; those that a wrapped offset hits are not."""
    rows, dim = (1 << 31) // DIM + 1000, DIM
    if torch.cuda.mem_get_info()[0] < rows * dim * 4 + (1 << 30):
        pytest.skip("the device has less than 10 GB free")
    table = torch.zeros((rows, dim), dtype=torch.float32, device="cuda")
    last = np.arange(rows - 700, rows)
    clock = clock_of(Schedule.constant(0.1, steps=9))
    for mode in Mode:
        table.zero_()
        plan = NoisePlan(mode, STREAM, clock, 0, dim)
        since = np.arange(700) % 9
        gpu.settle(table, torch.from_numpy(last).cuda(), torch.from_numpy(since).cuda(), 9, plan)
        settlement = Settlement(mode, STREAM, clock, table=0, dim=dim)
        expected = settlement.settle(np.zeros((700, dim), np.float32), last, since, 9)
        assert_same_bits(table[-700:], torch.from_numpy(expected))
        assert int(torch.count_nonzero(table[:-700])) == 0
    call = LookupCall(torch.from_numpy(last).cuda(), torch.arange(701, device="cuda"), torch.arange(700, device="cuda"))
    before = table[-700:].cpu().clone()
    assert_same_bits(gpu.pool(table, call), before + 0.0)
    gradient = torch.ones((700, dim), device="cuda")
    gpu.update(table, [call], [gradient], torch.ones(700, dtype=torch.float64, device="cuda"), -32, 0.5)
    assert_same_bits(table[-700:], before - 0.5)
    assert int(torch.count_nonzero(table[:-700])) == 0


def test_more_lanes_change_nothing(gpu: GpuKernels) -> None:
    rows = torch.arange(3000, device="cuda")
    expected = gpu.normals(STREAM, Purpose.REPLAY, 0, rows, 5, 100).cpu()
    for lanes in (32, 64, 256, 512):
        assert_same_bits(GpuKernels("cuda", lanes=lanes).normals(STREAM, Purpose.REPLAY, 0, rows, 5, 100), expected)
