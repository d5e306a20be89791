"""A DLRM with per-example gradients written by hand, one example at a time.

    bottom MLP:   h = relu(W h + b) after every layer, from the dense features to width `dim`; absent without any
    interaction:  Z = [h, e_1, ..., e_F];  dots = <Z_i, Z_j> for i < j, in row-major order
    top MLP:      from [h, dots], relu between layers, to one logit
    loss:         binary cross-entropy of the logit

Examples never meet in a product, and products are written as sums in NumPy's own fixed order in place of BLAS, so the
bits of one example depend on that example alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from samelaw.contract.errors import InputError
from samelaw.contract.oracle import ExampleGradients, Reader
from samelaw.contract.spec import CONTRIBUTION_BITS
from samelaw.contract.trace import Batch, Feature, Lookup
from samelaw.reference.truncation import contribution


class NumpyDLRM:
    """A gradient oracle in plain NumPy.

    Args:
        dense: "bottom.{i}.weight" (out, in), "bottom.{i}.bias" (out,), "top.{i}.weight", "top.{i}.bias"; copied.
        features: categorical features, in the order of `Batch.features`; several may share a table.
        dense_width: width of the dense features; 0 means no bottom MLP.
        dtype: precision of the forward and backward pass.
        exponent: e of the grid 2^e of the dense contributions: `spec.contribution_exponent`. The default is that of
            clip norm 1. Any grid is safe; a coarse one only loses precision.

    Guarantees:
        M1  `per_example_gradients` are the derivatives of each example's own loss.
        S1  Dense contributions are truncated toward zero onto the grid and added exactly, as those of tables are.

    Raises:
        InputError: the layers do not fit together.

    Source: Naumov et al., arXiv 1906.00091.
    """

    def __init__(
        self,
        dense: Mapping[str, np.ndarray],
        features: Sequence[Feature],
        dense_width: int,
        *,
        dtype: Any = np.float64,
        exponent: int = -CONTRIBUTION_BITS,
    ) -> None:
        self._dense = {name: np.array(array, dtype=np.float32) for name, array in dense.items()}
        self.features = tuple(features)
        self.dense_width = dense_width
        self.dtype = np.dtype(dtype)
        self.exponent = exponent
        self._last: list[_Example] = []
        _check_layers(self._dense, dense_width)

    @property
    def dense(self) -> dict[str, np.ndarray]:
        """The parameters themselves: whoever writes into them changes the model."""
        return self._dense

    def gradients(self, batch: Batch, read: Reader) -> ExampleGradients:
        """Forward and backward for every example of a batch."""
        lookups = self.lookups(batch)
        vectors = [read(lookup).astype(self.dtype) for lookup in lookups]
        self._last = [
            self._example(
                batch.dense[b].astype(self.dtype),
                np.stack([vector[b] for vector in vectors]),
                float(batch.labels[b]),
            )
            for b in range(len(batch))
        ]
        return ExampleGradients(
            lookups,
            [np.stack([example.vectors[f] for example in self._last]).astype(np.float32) for f in range(len(lookups))],
            np.array([example.dense_square_norm() for example in self._last], dtype=np.float64),
            np.array([example.loss for example in self._last], dtype=np.float32),
            np.array([example.logit for example in self._last], dtype=np.float32),
        )

    def clipped_dense_sum(self, factors: Float64[np.ndarray, "examples"]) -> dict[str, np.ndarray]:
        """sum_b trunc(g_b * f_b * 2^-e) in int64, rounded to float32 once, times 2^e.

        An example whose factor is 0 contributes nothing, whatever its gradient holds.
        """
        sums: dict[str, np.ndarray] = {}
        for name, parameter in self._dense.items():
            total = np.zeros(parameter.shape, dtype=np.int64)
            for example, factor in zip(self._last, factors.tolist(), strict=True):
                if factor > 0:
                    gradient = example.dense[name].astype(np.float64)
                    part = contribution(gradient.ravel(), math.ldexp(factor, -self.exponent))
                    total = total + part.reshape(parameter.shape)
            sums[name] = np.ldexp(total.astype(np.float32), self.exponent)
        return sums

    def per_example_gradients(self, batch: Batch, read: Reader) -> dict[str, Float[np.ndarray, "examples *shape"]]:
        """The whole gradient of each example's loss over each dense parameter."""
        self.gradients(batch, read)
        return {name: np.stack([example.dense[name] for example in self._last]) for name in self._dense}

    def lookups(self, batch: Batch) -> list[Lookup]:
        """One table call per feature; bag i belongs to example i."""
        if len(batch.features) != len(self.features):
            raise InputError(f"the model has {len(self.features)} features, the batch {len(batch.features)}")
        return [
            Lookup(
                f"tables.{feature.table}",
                bags.ids,
                bags.offsets,
                np.arange(len(batch), dtype=np.int64),
                feature.pooling,
            )
            for feature, bags in zip(self.features, batch.features, strict=True)
        ]

    def _example(
        self, x: Float[np.ndarray, "width"], embeddings: Float[np.ndarray, "features dim"], label: float
    ) -> _Example:
        """Loss and gradients of one example."""
        bottom, top = self._layers("bottom"), self._layers("top")

        h = [x]  # inputs of the bottom layers, then its output
        for weight, bias in bottom:
            h.append(_relu(_times(weight, h[-1]) + bias))
        z = np.concatenate([h[-1][None, :], embeddings]) if bottom else embeddings
        first, second = np.triu_indices(len(z), k=1)
        dots = np.sum(z[first] * z[second], axis=1)
        t = [np.concatenate([h[-1], dots]) if bottom else dots]  # inputs of the top layers, then the logit
        for i, (weight, bias) in enumerate(top):
            value = _times(weight, t[-1]) + bias
            t.append(value if i == len(top) - 1 else _relu(value))
        logit = float(t[-1][0])

        gradients: dict[str, np.ndarray] = {}
        delta = np.array([_sigmoid(logit) - label], dtype=self.dtype)
        for i in reversed(range(len(top))):
            gradients[f"top.{i}.weight"] = np.outer(delta, t[i])
            gradients[f"top.{i}.bias"] = delta
            delta = _times(top[i][0].T, delta)
            if i > 0:
                delta = delta * (t[i] > 0)
        direct, of_dots = delta[: delta.size - dots.size], delta[delta.size - dots.size :]
        of_z = np.zeros_like(z)  # dot (i, j) gives its derivative times Z_j to Z_i, and times Z_i to Z_j
        np.add.at(of_z, first, of_dots[:, None] * z[second])
        np.add.at(of_z, second, of_dots[:, None] * z[first])
        if bottom:
            delta = direct + of_z[0]
            for i in reversed(range(len(bottom))):
                delta = delta * (h[i + 1] > 0)
                gradients[f"bottom.{i}.weight"] = np.outer(delta, h[i])
                gradients[f"bottom.{i}.bias"] = delta
                delta = _times(bottom[i][0].T, delta)
        return _Example(_cross_entropy(logit, label), logit, gradients, of_z[len(z) - len(embeddings) :])

    def _layers(self, part: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """(weight, bias) of each layer of one MLP, in the precision of the pass."""
        count = sum(name.startswith(f"{part}.") for name in self._dense) // 2
        return [
            (
                self._dense[f"{part}.{i}.weight"].astype(self.dtype),
                self._dense[f"{part}.{i}.bias"].astype(self.dtype),
            )
            for i in range(count)
        ]


@dataclass(frozen=True, repr=False)
class _Example:
    """One example's loss, and its gradients over the dense parameters and over its pooled vectors."""

    loss: float
    logit: float
    dense: dict[str, np.ndarray]
    vectors: Float[np.ndarray, "features dim"]

    def dense_square_norm(self) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            return sum(float(np.sum(np.square(g.astype(np.float64)))) for g in self.dense.values())


def _times(matrix: Float[np.ndarray, "out in"], vector: Float[np.ndarray, "in"]) -> Float[np.ndarray, "out"]:
    """Matrix times vector."""
    return np.sum(matrix * vector, axis=1)


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _sigmoid(x: float) -> float:
    return float(0.5 * (1 + np.tanh(0.5 * x)))


def _cross_entropy(logit: float, label: float) -> float:
    """-label * log(sigmoid(logit)) - (1 - label) * log(1 - sigmoid(logit)), without overflow."""
    return float(max(logit, 0.0) - logit * label + np.log1p(np.exp(-abs(logit))))


def _check_layers(dense: Mapping[str, np.ndarray], dense_width: int) -> None:
    counts = {part: sum(name.startswith(f"{part}.") for name in dense) for part in ("bottom", "top")}
    wanted = {f"{part}.{i}.{kind}" for part, n in counts.items() for i in range(n // 2) for kind in ("weight", "bias")}
    if set(dense) != wanted or not counts["top"] or bool(counts["bottom"]) != (dense_width > 0):
        raise InputError(
            "dense parameters must be top.{i}.weight and top.{i}.bias, and the same for bottom when there are dense "
            f"features ({dense_width} here); got {sorted(dense)}"
        )
    for part, n in counts.items():
        width = dense_width if part == "bottom" else dense["top.0.weight"].shape[1]
        for i in range(n // 2):
            weight, bias = dense[f"{part}.{i}.weight"], dense[f"{part}.{i}.bias"]
            if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                raise InputError(
                    f"{part}.{i}: weight {weight.shape} and bias {bias.shape} do not fit input width {width}"
                )
            width = len(weight)
        if part == "top" and width != 1:
            raise InputError(f"the last top layer must have one output, got {width}")
