"""Norms and clipped sums of the dense parameters' per-example gradients.

For a Linear layer with inputs a_l and output gradients d_l (l over the positions of one example: all its extra
leading indices, in all calls of the layer) the weight gradient of an example is sum_l d_l a_l^T, so

    |gradient|^2 = sum over l, m of <d_l, d_m> <a_l, a_m>,        clipped sum = (f d)^T a, one matrix product.

Accuracy. Norms are float64 sums of products of float32 numbers, each product exact. A sum of k terms of one sign is
right to k * 2^-53, below 2^-29 for k up to 2^24. Where several positions may cancel, the a-priori bound on what
rounding can take away is added (`_cancellation`), so the result is not below the true value.

What one example adds to the clipped sum is the vector whose norm was taken. With one position nothing of an example can
cancel, so float32 will do: a factor and a product that are rounded, at most 2^-22 together. Below the normal numbers
rounding is no longer relative, so what falls there is dropped (`dense_calls.weighted`). With several positions, and in
layers without a closed form, the sum is made in float64, like the norm, and rounded once. The margin of 2^-20 in the
clip factor covers the rest, so f * gradient stays within the clip norm. What float32 matrix products do to the *sum*
over examples is rounding of the mechanism's output, as in every float implementation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor, nn

from samelaw.fast.dense_calls import DenseCall, cleared, normal, weighted
from samelaw.fast.general_layers import example_gradients

_CHUNK_BYTES = 1 << 26


@dataclass(frozen=True, eq=False, repr=False)
class _LinearUse:
    """One call of a Linear layer as matrices of each example."""

    inputs: Float32[Tensor, "examples positions in"]
    gradient: Float32[Tensor, "examples positions out"]


class DenseGradients:
    """Per-example gradients of one batch over all dense parameters, without ever holding all of them.

    Args:
        parameters: the model's trainable parameters by name.
        calls: every call that the losses depend on, in call order.
        examples: number of examples.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], calls: Sequence[DenseCall], examples: int) -> None:
        self.parameters, self.examples = parameters, examples
        self.general = [call for call in calls if not call.site.linear]
        self._kept: dict[str, Tensor] | None = None
        self._general_squares: Tensor | None = None
        self._weights: dict[str, list[_LinearUse]] = {}
        self._biases: dict[str, list[_LinearUse]] = {}
        for call in calls:
            if call.site.linear:
                self._note_linear(call)

    def square_norms(self, device: torch.device) -> Float64[Tensor, "examples"]:
        """Squared L2 norm of each example's gradient over all dense parameters, from above."""
        total = torch.zeros(self.examples, dtype=torch.float64, device=device)
        squares: dict[int, Tensor] = {}
        for uses in self._weights.values():
            if _one_position(uses):
                total += _squares(uses[0].inputs[:, 0]) * _gradient_squares(uses[0], squares)
            else:
                total += _weight_norms(uses, self.examples)
        for uses in self._biases.values():
            if _one_position(uses):
                total += _gradient_squares(uses[0], squares)
            else:
                total += _bias_norms(uses)
        if self.general:
            total += self._general_norms(device)
        return total

    def clipped_sums(self, factors: Float64[Tensor, "examples"]) -> dict[str, Float32[Tensor, "..."]]:
        """sum_i factors[i] * g_i for every parameter, by name; zeros where no loss depends on it.

        Call square_norms first.
        """
        shares = normal(factors.to(torch.float32))
        # A factor of zero marks a gradient that is not finite, and zero times that would still poison the sum.
        zero = factors == 0
        void = zero if bool(zero.any()) else None
        sums: dict[str, Tensor] = {}
        for name, uses in self._weights.items():
            sums[name] = (
                _weight_sum(uses[0], shares, void) if _one_position(uses) else _weight_sum_64(uses, factors, void)
            )
        for name, uses in self._biases.items():
            if _one_position(uses):
                sums[name] = shares @ cleared(uses[0].gradient[:, 0].to(torch.float32), void)
            else:
                parts = [factors @ cleared(use.gradient, void).sum(1, dtype=torch.float64) for use in uses]
                sums[name] = torch.stack(parts).sum(0)
        if self.general:
            sums |= self._general_sums(factors, void)
        return {
            name: sums[name].to(torch.float32).view_as(parameter).contiguous()
            if name in sums
            else torch.zeros_like(parameter.detach())
            for name, parameter in self.parameters.items()
        }

    def _note_linear(self, call: DenseCall) -> None:
        inputs: Tensor = call.args[0] if call.args else call.kwargs["input"]
        positions = math.prod(call.gradient.shape[1:-1])
        use = _LinearUse(
            inputs.reshape(self.examples, positions, inputs.shape[-1]),
            call.gradient.reshape(self.examples, positions, call.gradient.shape[-1]),
        )
        for local, uses in (("weight", self._weights), ("bias", self._biases)):
            if local in call.site.parameters:
                uses.setdefault(call.site.parameters[local], []).append(use)

    def _general_norms(self, device: torch.device) -> Float64[Tensor, "examples"]:
        """Norms of the layers without a closed form. Their gradients are kept where all examples fit one chunk."""
        self._general_squares = total = torch.zeros(self.examples, dtype=torch.float64, device=device)
        for part, gradients in self._general_gradients():
            total[part] = _all_squares(gradients)
            if part == slice(0, self.examples):
                self._kept = gradients
        return total

    def _general_sums(
        self, factors: Float64[Tensor, "examples"], void: Bool[Tensor, "examples"] | None
    ) -> dict[str, Float64[Tensor, "numbers"]]:
        """Clipped sums of the same layers, from the same per-example gradients."""
        before = self._general_squares
        assert before is not None
        sums: dict[str, Tensor] = {}
        for part, gradients in self._general_gradients():
            shares, outside = factors[part], None if void is None else void[part]
            if self._kept is None:
                # Made a second time, a gradient has the same bits on a CPU. A device that adds in another order each
                # time could make a longer one, which must not add more than the norm says.
                ratio = (before[part] / _all_squares(gradients)).sqrt()
                shares = cleared(torch.where(ratio < 1, shares * ratio, shares), outside)
            for name, gradient in gradients.items():
                _add(sums, name, shares @ cleared(gradient, outside))
        return sums

    def _general_gradients(self) -> Iterator[tuple[slice, dict[str, Float64[Tensor, "chunk numbers"]]]]:
        """Per-example gradients by parameter, flat, a chunk of examples at a time; calls that share one add up."""
        if self._kept is not None:
            yield slice(0, self.examples), self._kept
            return
        names = {name for call in self.general for name in call.site.parameters.values()}
        chunk = _chunk(sum(self.parameters[name].numel() for name in names))
        for start in range(0, self.examples, chunk):
            end = min(start + chunk, self.examples)
            gradients: dict[str, Tensor] = {}
            for call in self.general:
                for name, part in example_gradients(call, start, end).items():
                    _add(gradients, name, part.reshape(end - start, -1))
            yield slice(start, end), gradients


def _one_position(uses: Sequence[_LinearUse]) -> bool:
    """Whether an example's gradient is a single product, in which nothing can cancel."""
    return len(uses) == 1 and uses[0].gradient.shape[1] == 1


def _all_squares(gradients: Mapping[str, Float64[Tensor, "chunk numbers"]]) -> Float64[Tensor, "chunk"]:
    """Squared norm of each example over all parameters."""
    return torch.stack([_squares(gradients[name]) for name in sorted(gradients)]).sum(0)


def _weight_norms(uses: Sequence[_LinearUse], examples: int) -> Float64[Tensor, "examples"]:
    """Squared norm of sum_l d_l a_l^T per example, by Gram matrices or the gradient itself, whichever is smaller."""
    positions = sum(use.gradient.shape[1] for use in uses)
    width, height = uses[0].inputs.shape[-1], uses[0].gradient.shape[-1]
    gram = positions * (width + height) <= width * height
    chunk = _chunk(positions * (positions + width + height) if gram else width * height + positions * (width + height))
    norms: list[Tensor] = []
    for start in range(0, examples, chunk):
        a = torch.cat([use.inputs[start : start + chunk].to(torch.float64) for use in uses], dim=1)
        d = torch.cat([use.gradient[start : start + chunk].to(torch.float64) for use in uses], dim=1)
        if gram:
            n = ((a @ a.transpose(1, 2)) * (d @ d.transpose(1, 2))).sum((1, 2))
        else:
            n = _squares((d.transpose(1, 2) @ a).flatten(1))
        norms.append(n + _cancellation(positions, width + height) * (_squares(a) * _squares(d)).sum(1))
    return torch.cat(norms)


def _bias_norms(uses: Sequence[_LinearUse]) -> Float64[Tensor, "examples"]:
    """Squared norm of sum_l d_l per example."""
    d = torch.cat([use.gradient.to(torch.float64) for use in uses], dim=1)
    return _squares(d.sum(1)) + _cancellation(d.shape[1], 1) * _squares(d).sum(1)


def _cancellation(positions: int, width: int) -> float:
    """What rounding can take from |sum_l d_l a_l^T|^2, relative to sum_l |d_l|^2 |a_l|^2.

    Each of the L^2 products of two dot products is off by at most (width + 2) * 2^-53 times |d_l||d_m||a_l||a_m|,
    adding them loses at most L^2 * 2^-53 of the sum of these, and that sum is
    (sum_l |d_l||a_l|)^2 <= L * sum_l |d_l|^2 |a_l|^2. The other route sums L products per entry and squares:
    2 (L + 1) * 2^-53 by the same inequality. Twice the sum of both leaves room for second-order terms.
    """
    return 2 * positions * (positions**2 + width + 2 * positions + 4) * 2.0**-53


def _squares(x: Tensor) -> Float64[Tensor, "..."]:
    """Sum of squares over the last axis in float64, without a float64 copy of x.

    A float32 square is exact in float64; the root and the square of it add two roundings.
    """
    norms = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
    return norms * norms


def _gradient_squares(use: _LinearUse, known: dict[int, Tensor]) -> Float64[Tensor, "examples"]:
    """|d|^2 of a call with one position, computed once for its weight and its bias."""
    if id(use) not in known:
        known[id(use)] = _squares(use.gradient[:, 0])
    return known[id(use)]


def _weight_sum(
    use: _LinearUse, shares: Float32[Tensor, "examples"], void: Bool[Tensor, "examples"] | None
) -> Float32[Tensor, "out in"]:
    """(f d)^T a, or d^T (f a) where a is the narrower: one matrix product."""
    if use.inputs.shape[-1] < use.gradient.shape[-1]:
        inputs, gradient = weighted(use.inputs, shares, void), cleared(use.gradient.to(torch.float32), void)
    else:
        inputs, gradient = cleared(use.inputs.to(torch.float32), void), weighted(use.gradient, shares, void)
    return gradient.flatten(0, 1).t() @ inputs.flatten(0, 1)


def _weight_sum_64(
    uses: Sequence[_LinearUse], factors: Float64[Tensor, "examples"], void: Bool[Tensor, "examples"] | None
) -> Float64[Tensor, "out in"]:
    """sum over the uses of (f d)^T a in float64, a chunk of examples at a time.

    An example's positions may cancel down to 10^-8 of their size, and float32 products to 10^-7 alone: an example
    would add more than the norm says that it has.
    """
    height, width = uses[0].gradient.shape[-1], uses[0].inputs.shape[-1]
    total = factors.new_zeros(height, width)
    for use in uses:
        chunk = _chunk(use.gradient.shape[1] * (width + height))
        for start in range(0, factors.shape[0], chunk):
            part = slice(start, start + chunk)
            outside = None if void is None else void[part]
            a = cleared(use.inputs[part].to(torch.float64), outside)
            d = cleared(use.gradient[part].to(torch.float64), outside)
            if width < height:
                a = a * factors[part, None, None]
            else:
                d = d * factors[part, None, None]
            total += d.flatten(0, 1).t() @ a.flatten(0, 1)
    return total


def _chunk(numbers: int) -> int:
    """Examples at a time, when each needs this many float64 numbers."""
    return max(1, _CHUNK_BYTES // (8 * max(1, numbers)))


def _add(into: dict[str, Tensor], name: str, value: Tensor) -> None:
    into[name] = into[name] + value if name in into else value
