"""The GPU backend: Triton kernels with the bits of the NumPy definition. docs/gpu.md says what was checked where."""

from samelaw.fast.gpu.kernels import GpuKernels

__all__ = ["GpuKernels"]
