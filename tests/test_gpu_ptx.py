"""What Triton makes of the kernels for an H100, read in the PTX: no GPU is needed to compile.

The kernels are compiled with the very arguments that GpuKernels launches them with. PTX says of every float operation
how it rounds: an instruction with `.rn` is rounded to nearest by itself, and ptxas may not fuse it; `.approx`, `.full`,
`.ftz` and `fma` are what the arithmetic forbids.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any

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

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from samelaw.fast.gpu import GpuKernels, checks  # noqa: E402  (after the skip)

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
FLOAT = re.compile(
    r"^\s*(?:@!?%p\d+\s+)?((?:add|sub|mul|div|sqrt|fma|mad|rcp|ex2|lg2|sin|cos|tanh|rsqrt)\.\S*f(?:16|32|64)\S*)\s",
    re.M,
)
ALLOWED = re.compile(r"(add|sub|mul|div|sqrt)\.rn\.(f32|f64)")


class CompilingKernels(GpuKernels):
    """Compiles what it is asked to launch, with the arguments' own types and alignment, and runs nothing.

    Args:
        fuse: leave fused multiply-adds on.
        only: kernels to compile; all by default.
    """

    def __init__(self, *, fuse: bool = False, only: Collection[str] = ()) -> None:
        super().__init__("cpu")
        self.fuse, self.only = fuse, only
        self.ptx: dict[str, list[str]] = defaultdict(list)

    def launch(self, kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        assert programs > 0
        if self.only and kernel.__name__ not in self.only:
            return
        signature: dict[str, str] = {}
        attributes: dict[tuple[int], list[list[object]]] = {}
        for place, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
            if isinstance(value, torch.Tensor):
                signature[name] = POINTERS[value.dtype]
                attributes[place,] = [["tt.divisibility", 16]]
            elif isinstance(value, float):
                signature[name] = "fp32"
            else:
                signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        signature |= dict.fromkeys(constants, "constexpr")
        assert set(signature) == set(kernel.arg_names)
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=attributes)
        options = {"num_warps": 4, "enable_fp_fusion": self.fuse}
        self.ptx[kernel.__name__].append(triton.compile(source, target=HOPPER, options=options).asm["ptx"])


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, list[str]]]:
    """launches(): the PTX of every kernel, over the kinds of arguments that choose other code. launches(only): of some
    kernels, with fused multiply-adds left on."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    patch.setattr(checks, "interpreting", lambda: True)

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
    yield lambda *only: compile_all(*only) if only else plain
    patch.undo()


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
