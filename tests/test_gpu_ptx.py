"""What Triton makes of the kernels for an H100: the PTX is read, and executed on the CPU. No GPU is needed to compile.

The kernels are compiled with the very arguments that GpuKernels launches them with. PTX says of every float operation
how it rounds: an instruction with `.rn` is rounded to nearest by itself, and ptxas may not fuse it; `.approx`, `.full`,
`.ftz` and `fma` are what the arithmetic forbids. gpu_ptx_machine.py executes the PTX, so that the cases of
gpu_*_cases.py run on compiled code: what is left to a device is ptxas, the hardware, and speed.
"""
# ruff: noqa: E402  (skips and paths come before the imports that need them)

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose
from samelaw.contract.schedule import NoiseClock, Schedule
from samelaw.contract.spec import Mode
from samelaw.contract.trace import Pooling
from samelaw.fast.kernels import LookupCall, NoisePlan

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("Triton interprets in this process: nothing is compiled", allow_module_level=True)


sys.path.insert(0, str(Path(__file__).parent))  # the neighbours, whatever way pytest imports test modules
import gpu_cases  # noqa: F401  (registers every case)
from gpu_compiling import CASES, CompilingKernels, EmulatedKernels
from gpu_ptx_machine import MachineError

FLOAT = re.compile(
    r"^\s*(?:@!?%p\d+\s+)?((?:add|sub|mul|div|sqrt|fma|mad|rcp|ex2|lg2|sin|cos|tanh|rsqrt)\.\S*f(?:16|32|64)\S*)\s",
    re.M,
)
ALLOWED = re.compile(r"(add|sub|mul|div|sqrt)\.rn\.(f32|f64)")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled code of this run's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture(scope="module")
def launches(cache: None) -> Callable[..., dict[str, list[str]]]:
    """launches(): the PTX of every kernel, over the kinds of arguments that choose other code. launches(only): of some
    kernels, with fused multiply-adds left on."""

    def compile_all(*only: str) -> dict[str, list[str]]:
        kernels = CompilingKernels(fuse=bool(only), only=only)
        stream = NoiseStream(NoiseKey.from_seed(1), rounds=8)
        rows = torch.tensor([1, 0, 3])
        schedule = Schedule.piecewise([3], [0.1, 0.2], steps=9)
        clock = NoiseClock.of(schedule, noise_multiplier=1.0, clip_norm=1.0, expected_batch_size=4.0)
        table = torch.ones((5, 20))
        for mode in Mode:
            kernels.settle(table, rows, rows, 5, NoisePlan(mode, stream, clock, 2, 20))
        kernels.normals(stream, Purpose.REPLAY, 0, rows, rows, 20)
        kernels.subtract_noise(table.view(-1), stream, Purpose.DENSE, 1, 2, 0.5)
        kernels.poisson_sample(stream, 1, 0.5, 100)
        weights = torch.tensor([0.5, 2.0, 1.0])
        factors = torch.ones(2, dtype=torch.float64)
        gradient = torch.ones((2, 20))
        for pooling, given in ((Pooling.MEAN, None), (Pooling.SUM, weights)):
            call = LookupCall(rows, torch.tensor([0, 1, 3]), torch.tensor([0, 1]), pooling, given)
            kernels.pool(table, call)
            kernels.square_norms([call], [gradient], factors)
            kernels.update(table, [call], [gradient], factors, -32, 0.5)
        return kernels.ptx

    plain = compile_all()
    return lambda *only: compile_all(*only) if only else plain


def test_every_kernel_of_the_backend_is_looked_at(launches: Callable[..., dict[str, list[str]]]) -> None:
    from samelaw.fast.gpu import gradients, noise, settlement

    written = {name for module in (gradients, noise, settlement) for name in vars(module) if name.endswith("_kernel")}
    assert set(launches()) == written


def test_every_float_operation_rounds_to_nearest_and_by_itself(launches: Callable[..., dict[str, list[str]]]) -> None:
    for name, texts in launches().items():
        for text in texts:
            operations = FLOAT.findall(text)
            assert operations or name == "sampling_kernel"
            wrong = {operation for operation in operations if not ALLOWED.fullmatch(operation)}
            assert not wrong, f"{name} uses {sorted(wrong)}"
            assert not re.search(r"\.ftz|\.approx|\.full|\bfma\b|\bmad\.\S*f", text), name


def test_the_exact_operations_are_there(launches: Callable[..., dict[str, list[str]]]) -> None:
    """Guards the test above against looking for names that PTX does not use."""
    found = {name: {op for text in texts for op in FLOAT.findall(text)} for name, texts in launches().items()}
    assert {"sqrt.rn.f32", "mul.rn.f32", "add.rn.f32"} <= found["normals_kernel"]
    assert {"sqrt.rn.f64", "div.rn.f64", "sub.rn.f32"} <= found["bridge_kernel"] | {"sub.rn.f32"}
    assert "sqrt.rn.f64" in found["aggregate_kernel"]
    assert "div.rn.f32" in found["pool_kernel"]
    assert "div.rn.f64" in found["square_norms_kernel"] & found["contributions_kernel"]
    assert not found["sampling_kernel"]
    atomics = [text for text in launches()["contributions_kernel"] if re.search(r"\b(red|atom)\.\S*add\.u64", text)]
    assert len(atomics) == 2, "the sums are added in 64-bit integers"
    assert not any(re.search(r"\b(red|atom)\.\S*\.f\d\d", text) for texts in launches().values() for text in texts)


def test_rounding_by_a_large_constant_survives_the_compiler(launches: Callable[..., dict[str, list[str]]]) -> None:
    """(x + 1.5 * 2^52) - 1.5 * 2^52 rounds to an integer; a compiler that reassociates would drop both."""
    constant = np.float64(1.5 * 2**52).view(np.uint64)
    for text in launches()["bridge_kernel"]:
        assert len(re.findall(rf"add\.rn\.f64.*0d{int(constant):016X}", text)) >= 32
        minus = int(np.float64(-1.5 * 2**52).view(np.uint64))
        assert len(re.findall(rf"(sub\.rn\.f64.*0d{int(constant):016X}|add\.rn\.f64.*0d{minus:016X})", text)) >= 32


def test_fusion_would_show(launches: Callable[..., dict[str, list[str]]]) -> None:
    """The same look at the same kernels finds fused operations where fusion is on."""
    names = ("normals_kernel", "apply_kernel", "contributions_kernel")
    fused = launches(*names)
    for name in names:
        assert any("fma.rn" in operation for text in fused[name] for operation in FLOAT.findall(text)), name


# Cases that need few compilations, for every test run; the others are slow.
QUICK = (
    "bm32_on_words_chosen_to_hurt",
    "subnormal_weights_and_scales_are_not_flushed",
    "pooled_reads",
    "one_row_in_every_bag",
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES])
def test_the_compiled_kernels_have_the_reference_s_bits(name: str, cache: None) -> None:
    CASES[name](EmulatedKernels())


def normals_with(fault: Callable[[str], str]) -> None:
    """Seventeen columns for nine rows, by compiled code with a fault in it."""
    kernels = EmulatedKernels()
    kernels.changed = fault
    kernels.normals(NoiseStream(NoiseKey.from_seed(1), rounds=8), Purpose.REPLAY, 0, torch.arange(9), 5, 17)


def test_the_machine_notices_a_missing_barrier(cache: None) -> None:
    normals_with(lambda ptx: ptx)
    with pytest.raises(MachineError, match="another warp"):
        normals_with(lambda ptx: ptx.replace("bar.sync", "// bar.sync"))


def test_the_machine_notices_an_access_outside_the_tensors(cache: None) -> None:
    """The mask of the rows is dropped: lanes that hang over read beyond the rows."""
    with pytest.raises(MachineError, match=r"bytes into a tensor|outside every tensor"):
        normals_with(lambda ptx: re.sub(r"@%p\d+ (ld|st)\.global", r"\1.global", ptx))


def test_the_machine_refuses_operations_that_do_not_round_to_nearest(cache: None) -> None:
    for exact, other in (("mul.rn.f32", "mul.rz.f32"), ("add.rn.f32", "add.f32"), ("sqrt.rn", "sqrt.approx.ftz")):
        with pytest.raises(MachineError):
            normals_with(lambda ptx, exact=exact, other=other: ptx.replace(exact, other))
