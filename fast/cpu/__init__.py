"""The CPU backend: numba kernels, full-width vectors, threads that never change a bit."""

from samelaw.fast.cpu.backend import CpuKernels

__all__ = ["CpuKernels"]
