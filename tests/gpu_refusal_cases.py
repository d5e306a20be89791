"""What the GPU backend refuses, before it has written anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gpu_making import STREAM, case, clock_of, on

from samelaw.contract.errors import AddressError, InputError
from samelaw.contract.noise import Purpose
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import Mode
from samelaw.fast.gpu import GpuKernels
from samelaw.fast.kernels import LookupCall, NoisePlan


@case
def what_does_not_fit_is_refused_before_anything_is_written(kernels: GpuKernels) -> None:
    clock = clock_of(Schedule.constant(0.1, steps=5))
    plan = NoisePlan(Mode.REPLAY, STREAM, clock, 0, 2)
    weights = torch.ones((3, 2), dtype=torch.float32, device=kernels.device)
    history = torch.zeros(3, dtype=torch.int32, device=kernels.device)
    one, zero = on(kernels, [1]), on(kernels, [0])
    good = LookupCall(one, on(kernels, [0, 1]), zero)
    gradient = torch.ones((1, 2), dtype=torch.float32, device=kernels.device)
    factors = on(kernels, [1.0], torch.float64)

    def call(ids: Any, offsets: Any, examples: Any, **options: Any) -> LookupCall:
        return LookupCall(on(kernels, ids), on(kernels, offsets), on(kernels, examples), **options)

    refused: list[tuple[str, Callable[[], object]]] = [
        ("row above the table", lambda: kernels.settle(weights, on(kernels, [3]), zero, 1, plan)),
        ("negative row", lambda: kernels.settle(weights, on(kernels, [-1]), zero, 1, plan)),
        ("until after the run", lambda: kernels.settle(weights, one, zero, 6, plan)),
        ("since after until", lambda: kernels.settle(weights, one, on(kernels, [3]), 2, plan)),
        ("negative since", lambda: kernels.settle(weights, one, on(kernels, [-1]), 2, plan)),
        ("another dim", lambda: kernels.settle(weights[:, :1].contiguous(), one, zero, 2, plan)),
        ("not contiguous", lambda: kernels.settle(torch.ones((2, 3), device=kernels.device).t(), one, zero, 2, plan)),
        ("float64 table", lambda: kernels.settle(weights.double(), one, zero, 2, plan)),
        ("id above the history", lambda: kernels.due_rows(history, on(kernels, [3]), 1)),
        ("until above int32", lambda: kernels.due_rows(history, one, 2**31)),
        ("id above the table", lambda: kernels.pool(weights, call([3], [0, 1], [0]))),
        ("negative id", lambda: kernels.pool(weights, call([-1], [0, 1], [0]))),
        ("offsets that fall", lambda: kernels.pool(weights, call([1, 1], [0, 2, 1, 2], [0, 1, 2]))),
        ("offsets that stop early", lambda: kernels.pool(weights, call([1, 1], [0, 1], [0]))),
        ("an offset too few", lambda: kernels.pool(weights, call([1, 1], [0, 2], [0, 1]))),
        ("examples that fall", lambda: kernels.pool(weights, call([1, 1], [0, 1, 2], [1, 0]))),
        ("a weight too few", lambda: kernels.pool(weights, call([1, 1], [0, 2], [0], weights=gradient[0, :1]))),
        ("example above the batch", lambda: kernels.square_norms([call([1], [0, 1], [1])], [gradient], factors)),
        ("a gradient too few", lambda: kernels.square_norms([good, good], [gradient], factors)),
        ("update of another dim", lambda: kernels.update(weights, [good], [gradient[:, :1]], factors, -32, 0.5)),
        (
            "update above the table",
            lambda: kernels.update(weights, [call([3], [0, 1], [0])], [gradient], factors, -32, 0.5),
        ),
        ("rate not float32", lambda: kernels.update(weights, [good], [gradient], factors, -32, 0.1)),
        ("scale not finite", lambda: kernels.subtract_noise(weights[0], STREAM, Purpose.DENSE, 0, 0, float("inf"))),
        ("sampling rate 0", lambda: kernels.poisson_sample(STREAM, 0, 0.0, 5)),
    ]
    for what, attempt in refused:
        try:
            attempt()
        except InputError:
            continue
        raise AssertionError(f"{what} was not refused")

    wrapped: list[tuple[str, Callable[[], object]]] = [
        ("row 2^48", lambda: kernels.normals(STREAM, Purpose.REPLAY, 0, on(kernels, [2**48]), 0, 4)),
        ("negative row", lambda: kernels.normals(STREAM, Purpose.REPLAY, 0, on(kernels, [-1]), 0, 4)),
        ("step 2^32", lambda: kernels.normals(STREAM, Purpose.REPLAY, 0, one, 2**32, 4)),
        ("steps 2^32", lambda: kernels.normals(STREAM, Purpose.REPLAY, 0, one, on(kernels, [2**32]), 4)),
        ("table 2^16", lambda: kernels.normals(STREAM, Purpose.REPLAY, 2**16, one, 0, 4)),
        ("dim 0", lambda: kernels.normals(STREAM, Purpose.REPLAY, 0, one, 0, 0)),
        ("dense step 2^32", lambda: kernels.subtract_noise(weights[0], STREAM, Purpose.DENSE, 0, 2**32, 1.0)),
        ("sampling step 2^32", lambda: kernels.poisson_sample(STREAM, 2**32, 0.5, 5)),
    ]
    for what, attempt in wrapped:
        try:
            attempt()
        except AddressError:
            continue
        raise AssertionError(f"{what} was not refused")
    assert (weights == 1).all()
    assert (history == 0).all()
