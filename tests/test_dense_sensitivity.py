"""S1 for the dense parameters: what one example adds to the clipped sum is never longer than the clip norm.

Each case is an example whose gradient in float32 is another than in float64, because something cancels, overflows or
falls below the normal numbers. Its contribution is the clipped sum of a batch that holds it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samelaw.contract.errors import PrivacyError
from samelaw.fast.bookkeeping import BatchGradients, Book
from samelaw.fast.clipping import clip_factors
from samelaw.fast.dense_calls import DenseCall
from samelaw.fast.dense_gradients import DenseGradients
from samelaw.fast.layer_rules import Site

LOWEST = torch.finfo(torch.float32).min
# A float32 sum of one float64 vector is off by 2^-24 of it, which the margin of 2^-20 covers: no slack is needed.


class ReadOut(nn.Module):
    """A layer, and losses that are a function of its output."""

    def __init__(self, layer: nn.Module, losses: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.losses = layer, losses

    def forward(self, x: Tensor) -> Tensor:
        return self.losses(self.layer(x))


class Masked(nn.Module):
    """LayerNorm of rows that may be missing: the lowest float32 number stands for a missing value."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x < -1e38, torch.zeros(()), self.norm(x)).sum(-1)


class Exponential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x * self.rate)


@dataclass
class Case:
    model: Callable[[], nn.Module]
    x: Tensor
    clip_norm: float = 1.0


def read_with(coefficients: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda y: (y * coefficients).flatten(1).sum(1)


READ = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.3, -0.7, 0.9, -1.0])
PLANES = torch.randn(8, 9, generator=torch.Generator().manual_seed(1))

CASES = {
    "LayerNorm, a constant row of 1e4": Case(
        lambda: ReadOut(nn.LayerNorm(8), read_with(READ)), torch.full((1, 8), 10001.0)
    ),
    "LayerNorm, a constant row of 1e8": Case(
        lambda: ReadOut(nn.LayerNorm(8), read_with(READ)), torch.full((1, 8), 100010003.0)
    ),
    "LayerNorm without bias, a constant row of 1.6e9": Case(
        lambda: ReadOut(nn.LayerNorm(8, bias=False), read_with(READ)), torch.full((1, 8), 1600160000.0)
    ),
    "GroupNorm, constant planes of 1e4": Case(
        lambda: ReadOut(nn.GroupNorm(2, 8), read_with(PLANES)), torch.full((1, 8, 9), 10000.1)
    ),
    "GroupNorm, nearly constant planes of 1e4": Case(
        lambda: ReadOut(nn.GroupNorm(2, 8), read_with(PLANES)),
        10000.1 + 1e-3 * torch.randn(1, 8, 9, generator=torch.Generator().manual_seed(2)),
    ),
    "RMSNorm, a constant row of 1e19": Case(lambda: ReadOut(nn.RMSNorm(8), read_with(READ)), torch.full((1, 8), 1e19)),
    "a convolution whose output gradients cancel": Case(
        lambda: ReadOut(nn.Conv1d(4, 4, 3), read_with(1e6 * torch.tensor([1.0, -1.0]).repeat_interleave(32))),
        torch.full((1, 4, 66), 1.2345678) * torch.tensor([1.0, 2.3, 0.7, -1.1])[:, None],
    ),
    "a missing row": Case(Masked, torch.full((1, 4), LOWEST)),
    "an exponential that overflows behind a clamp": Case(
        lambda: ReadOut(Exponential(), lambda y: y.clamp(max=10).sum(-1)), torch.tensor([[100.0]])
    ),
    "positions of a Linear whose products overflow": Case(
        lambda: ReadOut(
            nn.Linear(1, 1), lambda y: F.poisson_nll_loss(y[..., 0], torch.zeros(y.shape[:2]), reduction="none").sum(1)
        ),
        torch.full((1, 4, 1), 88.6),
    ),
    "a Linear with an input of 1e37 and a small clip norm": Case(
        lambda: ReadOut(nn.Linear(8, 16, bias=False), lambda y: (y * 0.037).sum(-1)),
        torch.rand(1, 8, generator=torch.Generator().manual_seed(3)) * 3e37,
        clip_norm=1e-6,
    ),
}


def clipped(model: nn.Module, x: Tensor, clip_norm: float) -> tuple[dict[str, Tensor], BatchGradients]:
    for module in model.modules():
        if type(module) is nn.Linear:
            nn.init.ones_(module.weight)
            for bias in set(module.parameters()) - {module.weight}:
                nn.init.zeros_(bias)
    book = Book(model, device=torch.device("cpu"))
    found = book.backward(model(x))
    return book.clipped_sums(found, clip_factors(found.dense_square_norms, clip_norm)), found


def length(sums: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in sums.values()))


@pytest.mark.parametrize("small_chunks", [False, True], ids=["gradients kept", "gradients made twice"])
@pytest.mark.parametrize("name", CASES)
def test_S1_one_example_adds_at_most_the_clip_norm(
    name: str, small_chunks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    if small_chunks:
        monkeypatch.setattr("samelaw.fast.dense_gradients._CHUNK_BYTES", 8)
    torch.manual_seed(0)
    x = case.x
    if small_chunks:  # a second example, so that there is a second chunk; its losses are all zero
        x = torch.cat([x, torch.zeros_like(x)])
    model = case.model()
    sums, found = clipped(model, x, case.clip_norm)
    others = length(clipped(case.model(), torch.zeros_like(case.x), case.clip_norm)[0]) if small_chunks else 0.0
    assert bool(torch.isfinite(found.dense_square_norms).all())
    assert length(sums) <= case.clip_norm + others


def test_S1_positions_that_nearly_cancel() -> None:
    """d_0 a_0 + d_1 a_1 = 0 in exact numbers, but not once a factor was multiplied in float32."""
    layer, worst = nn.Linear(1, 1, bias=False), 0.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        a = (1 + torch.rand(2, generator=generator) / 4096).mul(4096).round().div(4096)  # so that products are exact
        a = a + torch.randint(0, 2048, (2,), generator=generator) / 2.0**23
        d = torch.stack([a[1], -a[0]]) * 2.0**40
        call = DenseCall(Site("layer", layer, {"weight": "weight"}, True), (a.view(1, 2, 1),), {}, d.view(1, 2, 1))
        gradients = DenseGradients(dict(layer.named_parameters()), [call], 1)
        factors = clip_factors(gradients.square_norms(torch.device("cpu")), 1.0)
        worst = max(worst, length(gradients.clipped_sums(factors)))
    assert worst <= 1.0


def test_one_example_cannot_make_the_sum_of_the_others_infinite() -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    x[1] = LOWEST
    sums, found = clipped(Masked(), x, 1.0)
    assert float(found.dense_square_norms[1]) == 0.0
    alone, _ = clipped(Masked(), x[[0, 2]], 1.0)
    for name, value in alone.items():
        assert torch.equal(sums[name], value), name


def test_a_sum_that_is_not_finite_is_never_handed_on() -> None:
    model = ReadOut(nn.Linear(1, 1), lambda y: y.flatten(1).sum(1) * 3e38)
    book = Book(model, device=torch.device("cpu"))
    found = book.backward(model(torch.ones(2, 1)))
    with pytest.raises(PrivacyError, match=r"clipped sum of parameter 'layer\.bias' must be finite"):
        book.clipped_sums(found, torch.ones(2, dtype=torch.float64))
