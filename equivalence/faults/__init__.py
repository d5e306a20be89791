"""Seeded faults: the bugs that lazy private trainers have had, planted on purpose to see that the claims catch them.

A fault patches plain methods ("seams") of one trainer, which arrives as an argument: of each table `pay`, `read`,
`settle_rows`, `update` and `plan`; of the trainer `square_norms`, `clip_factors`, `pay_dense`, `draw_sample`,
`empty_step`, `settle`, `load_checkpoint`, `kernels` and `ledger.append`; or it patches the function that prices a
ledger. Nothing here imports a backend: tensors arrive with the methods they have. docs/faults.md shows how to add one.
"""

from __future__ import annotations

import hashlib
import json

from samelaw.equivalence.faults import books, clipping, noise, resuming, sampling, scaling, settling
from samelaw.equivalence.faults.fault import WITH_KEY, Fault, FaultError, Kind, Scenario

__all__ = ["FAULTS", "WITH_KEY", "Fault", "FaultError", "Kind", "Scenario", "catalogue_digest"]

_ALL = (
    *settling.FAULTS, *noise.FAULTS, *scaling.FAULTS, *clipping.FAULTS, *sampling.FAULTS, *books.FAULTS,
    *resuming.FAULTS,
)  # fmt: skip

FAULTS: dict[str, Fault] = {fault.name: fault for fault in _ALL}


def catalogue_digest() -> str:
    """SHA-256 over every fault's name, kind, sentence, scenario and claims: what a rendered matrix belongs to."""
    record = [
        [f.name, f.kind, f.sentence, f.seen, f.scenario, {str(m): list(c) for m, c in f.caught_by.items()}]
        for f in FAULTS.values()
    ]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
