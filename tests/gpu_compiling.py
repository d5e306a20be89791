"""Backends that compile each kernel for an H100, with the arguments that GpuKernels launches it with, without a GPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import torch
import triton
from gpu_making import CASES
from gpu_ptx_machine import Machine, Program
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from samelaw.fast.gpu import GpuKernels, checks

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def compiled(kernel: Any, arguments: Sequence[Any], constants: Mapping[str, Any], *, fuse: bool = False) -> Any:
    """The kernel as Triton compiles it for such arguments: their types, and which pointers are aligned."""
    signature: dict[str, str] = {}
    attributes: dict[tuple[int], list[list[object]]] = {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[place,] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
    signature |= dict.fromkeys(constants, "constexpr")
    assert set(signature) == set(kernel.arg_names)
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=attributes)
    return triton.compile(source, target=HOPPER, options={"num_warps": 4, "enable_fp_fusion": fuse})


class _OnTheCpu(GpuKernels):
    """GpuKernels that hold CPU tensors although nothing interprets."""

    def __init__(self) -> None:
        with patch.object(checks, "interpreting", lambda: True):
            super().__init__("cpu")


class CompilingKernels(_OnTheCpu):
    """Compiles what it is asked to launch, and runs nothing.

    Args:
        fuse: leave fused multiply-adds on.
        only: kernels to compile; all by default.
    """

    def __init__(self, *, fuse: bool = False, only: Collection[str] = ()) -> None:
        super().__init__()
        self.fuse, self.only = fuse, only
        self.ptx: dict[str, list[str]] = defaultdict(list)

    def launch(self, kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        assert programs > 0
        if not self.only or kernel.__name__ in self.only:
            self.ptx[kernel.__name__].append(compiled(kernel, arguments, constants, fuse=self.fuse).asm["ptx"])


class EmulatedKernels(_OnTheCpu):
    """Compiles what it is asked to launch, and executes the PTX on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self._programs: dict[str, Program] = {}

    def launch(self, kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        if programs == 0:
            return
        binary = compiled(kernel, arguments, constants)
        ptx = self.changed(binary.asm["ptx"])
        if ptx not in self._programs:
            self._programs[ptx] = Program.parse(ptx)
        Machine(self._programs[ptx], shared=binary.metadata.shared).run(programs, arguments)
        self.launches += 1

    def changed(self, ptx: str) -> str:
        """What to execute in place of `ptx`; tests put faults here."""
        return ptx


__all__ = ["CASES", "CompilingKernels", "EmulatedKernels", "compiled"]
