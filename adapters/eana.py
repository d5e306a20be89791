"""EANA: noise on the rows that the batch reads, and on no other. It is not DP-SGD, and the bench must say so."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from samelaw.adapters.plain import PlainDPSGD, table_of
from samelaw.adapters.readout import rows_read
from samelaw.contract.bench import Abilities, BenchBatch


class EANA(PlainDPSGD):
    """DP-SGD that spares itself the noise of rows without gradient: the published model says which rows were read.

    Source: Ning et al., "EANA: Reducing Privacy Risk on Large-scale Recommendation Models", RecSys 2022.
    """

    abilities: ClassVar[Abilities] = PlainDPSGD.abilities

    def noise(self, name: str, parameter: Tensor, batch: BenchBatch) -> Tensor:
        drawn = super().noise(name, parameter, batch)
        table = table_of(name)
        if not table:
            return drawn
        kept = torch.zeros_like(drawn)
        rows = rows_read(self.problem, batch)[table]
        kept[rows] = drawn[rows]
        return kept
