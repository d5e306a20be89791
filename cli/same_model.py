"""Claim M1's two sides: the NumPy DLRM and the torch DLRM in float64, one example at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from samelaw.cli.models import Problem
from samelaw.contract.evidence import Evidence
from samelaw.contract.trace import Batch, Feature, Lookup
from samelaw.equivalence import claims
from samelaw.reference.dlrm import NumpyDLRM


def same_model(
    problem: Problem, features: Sequence[Feature], dense_width: int, batch: Batch, *, scope: str
) -> Evidence:
    """Compare per-example gradients over every dense parameter, at the problem's initial weights."""
    model = copy.deepcopy(problem.model).double()
    dense = {
        name: value.detach().numpy()
        for name, value in problem.model.named_parameters()
        if not name.startswith("tables.")
    }

    def read(lookup: Lookup) -> np.ndarray:
        """The torch tables' own pooled rows in float64, so that only the dense parts are compared."""
        table = model.get_submodule(lookup.table)
        assert isinstance(table, nn.EmbeddingBag)
        with torch.no_grad():
            return table(torch.from_numpy(lookup.ids), torch.from_numpy(lookup.offsets)).numpy()

    by_name = NumpyDLRM(dense, features, dense_width).per_example_gradients(batch, read)
    expected = [{name: gradient[i] for name, gradient in by_name.items()} for i in range(len(batch))]
    wide = Batch(batch.dense.astype(np.float64), batch.features, batch.labels.astype(np.float64), batch.indices)
    parameters = {name: value for name, value in model.named_parameters() if name in dense}
    losses, _ = problem.loss_fn(model, wide)
    found: list[dict[str, np.ndarray]] = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
        found.append({name: g.numpy() for name, g in zip(parameters, gradients, strict=True)})
    layers = [value.shape[1] for name, value in dense.items() if name.endswith("weight")]
    # Each layer is passed forwards (a sum over its inputs) and backwards (a sum over its outputs, no longer than the
    # widest layer); the interaction adds sums over the embedding dimension and over the features.
    operations = 2 * (sum(layers) + max(layers) * len(layers) + len(features) + 64)
    return claims.same_gradients(expected, found, operations=operations, scope=scope)
