"""The CPU backend: numba kernels, full-width vectors, threads that never change a bit."""
