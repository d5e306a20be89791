"""The GPU backend: Triton kernels that give the same bits as the NumPy definition. docs/gpu.md says what was checked where."""

from samelaw.fast.gpu.kernels import GpuKernels

__all__ = ["GpuKernels"]
