"""The fast path's own schedule on free terms, against eager.

The real LazyTrainer and its LazyTables run, with their indices, histories, order of settlement, look-ahead,
checkpoints and release, and with numba's own list of due rows (fast/cpu/history.py). Only the arithmetic of the backend
is replaced: a table's float32 weight is the number of a term (exact below 2^24), and paying or updating a row writes
the larger term's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samelaw.contract.ledger import Ledger
from samelaw.contract.noise import NoiseKey
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import ExecutionOptions, PrivacySpec
from samelaw.fast.cpu import CpuKernels
from samelaw.fast.kernels import LookupCall, NoisePlan
from samelaw.fast.trainer import LazyTrainer
from samelaw.reference import lazy_schedule
from samelaw.reference.rows import Weights

FEATURES = ("item", "user")


@dataclass(frozen=True)
class FastStep:
    """One step of the fast trainer.

    Attributes:
        bags: feature -> one list of ids per example; no example at all is an empty batch.
        look_ahead: feature -> rows that are announced before the step.
        looked_at: feature -> rows that a prediction reads before the step.
        settle: settle every row before the step.
    """

    bags: dict[str, list[list[int]]]
    look_ahead: dict[str, list[int]]
    looked_at: dict[str, list[int]]
    settle: bool


class Terms:
    """Terms by number; one book for all trainers of a check."""

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], int] = {}

    def of(self, *parts: Any) -> int:
        number = self.known.setdefault(parts, len(self.known))
        assert number < 1 << 24, "a float32 cannot hold the number of this term"
        return number

    def paid(self, name: str, row: int, since: int, until: int, term: int) -> int:
        assert since < until, "a row that owes nothing was handed over to be paid"
        for step in range(since, until):
            term = self.of("noise", name, row, step, term)
        return term


class TermKernels(CpuKernels):
    """The CPU backend with terms in place of numbers. Reads are written down as they are served."""

    def __init__(self, terms: Terms, rates: dict[float, int]) -> None:
        super().__init__(1)
        self.terms, self.rates = terms, rates
        self.reads: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

    def settle(self, weights: Tensor, rows: Tensor, since: Tensor, until: int, plan: NoisePlan) -> None:
        name = FEATURES[plan.table]
        assert len(set(rows.tolist())) == len(rows), "a row is settled twice in one call"
        for row, start in zip(rows.tolist(), since.tolist(), strict=True):
            weights[row, 0] = self.terms.paid(name, row, start, until, int(weights[row, 0]))

    def pool(self, weights: Tensor, call: LookupCall) -> Tensor:
        self.reads.append(("", tuple(call.ids.tolist()), tuple(weights[call.ids, 0].int().tolist())))
        return torch.zeros((call.bags, 1))

    def square_norms(self, calls: Sequence[LookupCall], pooled: Sequence[Tensor], start: Tensor) -> Tensor:
        return start.clone()

    def update(
        self,
        weights: Tensor,
        calls: Sequence[LookupCall],
        pooled: Sequence[Tensor],
        factors: Tensor,
        exponent: int,
        rate: float,
    ) -> None:
        gradient = tuple(tuple(call.ids.tolist()) for call in calls)
        for row in sorted({r for ids in gradient for r in ids}):
            weights[row, 0] = self.terms.of("update", self.rates[rate], row, gradient, int(weights[row, 0]))


class Model(nn.Module):
    """Two bags and no dense layer: terms are all that it has."""

    def __init__(self, sizes: dict[str, int], terms: Terms) -> None:
        super().__init__()
        self.item = nn.EmbeddingBag(sizes["item"], 1, mode="sum")
        self.user = nn.EmbeddingBag(sizes["user"], 1, mode="sum")
        for name in FEATURES:
            weight = getattr(self, name).weight
            with torch.no_grad():
                weight.copy_(torch.tensor([[float(terms.of("start", name, r))] for r in range(sizes[name])]))

    def forward(self, bags: dict[str, list[list[int]]]) -> Tensor:
        return sum((getattr(self, name)(*_flat(bags[name]))[:, 0] for name in FEATURES), torch.zeros(()))


def _flat(bags: list[list[int]]) -> tuple[Tensor, Tensor]:
    lengths = [0, *map(len, bags)]
    return torch.tensor([r for bag in bags for r in bag], dtype=torch.int64), torch.tensor(np.cumsum(lengths)[:-1])


def check_fast(
    sizes: dict[str, int], steps: Sequence[FastStep], folder: Path, pause: int | None, *, chunk: int = 2
) -> None:
    """The fast trainer, interrupted at `pause` or not, ends with eager's terms and has read eager's terms."""
    terms, count = Terms(), len(steps)
    schedule = Schedule.from_function(lambda step: 1.0 + step / 16, steps=max(count, 1))
    spec = PrivacySpec(1.0, 1.0, 0.5, 1.0, 1e-6, schedule)
    rates = {float(np.float32(schedule.rate(t))): t for t in range(count)}
    ledger, kernels = Ledger(), TermKernels(terms, rates)

    def trainer() -> LazyTrainer:
        made = LazyTrainer(
            Model(sizes, terms), spec, NoiseKey.from_seed(1), examples=8, ledger=ledger, kernels=kernels,
            options=ExecutionOptions(threads=1, settle_chunk=chunk, check_mixing=False),
        )  # fmt: skip
        assert tuple(made.tables) == FEATURES
        return made

    lazy = trainer()
    for step, what in enumerate(steps):
        if step == pause:
            lazy.save_checkpoint(folder / "pause")
            lazy = trainer()
            lazy.load_checkpoint(folder / "pause")
        if what.settle:
            lazy.settle()
        if any(what.looked_at.values()):
            lazy.predict({name: [what.looked_at[name]] for name in FEATURES})
        lazy.look_ahead(what.look_ahead)
        if what.bags["item"]:
            lazy.step(lazy.model(what.bags))
        else:
            lazy.empty_step()
    release = lazy.release() if count else None
    expected, reads = _eager(sizes, steps, terms)
    assert [(ids, values) for _, ids, values in kernels.reads] == reads, "the fast trainer has read something else"
    if release is not None:
        found = {name: release.tables[name][:, 0].astype(int).tolist() for name in FEATURES}
        assert found == expected, "the fast trainer has released something else"


def _eager(sizes: dict[str, int], steps: Sequence[FastStep], terms: Terms) -> tuple[dict[str, list[int]], list[Any]]:
    """The same trace through the eager program that is proved."""
    weights = Weights({n: np.array([terms.of("start", n, r) for r in range(sizes[n])], dtype=object) for n in FEATURES})
    everyone = {name: np.arange(sizes[name]) for name in FEATURES}
    seen: list[Any] = []

    def model(step: int) -> Any:
        what = steps[step]

        def run(read: Any) -> Any:
            looks = [{name: [what.looked_at[name]] for name in FEATURES}] if any(what.looked_at.values()) else []
            for bags in [*looks, *([what.bags] if what.bags["item"] else [])]:
                for name in FEATURES:
                    ids = np.array([r for bag in bags[name] for r in bag], dtype=np.int64)
                    seen.append((tuple(ids.tolist()), tuple(read({name: ids})[name])))
            ids = {name: tuple(r for bag in what.bags[name] for r in bag) for name in FEATURES}
            touched = {name: np.array(sorted(set(ids[name])), dtype=np.int64) for name in FEATURES}
            return touched, ids, None

        return run

    def update(step: int, rows: Any, gradient: Any, values: Any) -> Any:
        return {
            name: np.array(
                [
                    terms.of("update", step, r, (gradient[name],), w)
                    for r, w in zip(ids.tolist(), values[name], strict=True)
                ],
                dtype=object,
            )
            for name, ids in rows.items()
        }

    def owed(rows: Any, since: Any, until: int, values: Any) -> Any:
        return {
            name: np.array(
                [
                    terms.paid(name, r, s, until, w)
                    for r, s, w in zip(ids.tolist(), since[name].tolist(), values[name], strict=True)
                ],
                dtype=object,
            )
            for name, ids in rows.items()
        }

    for step in range(len(steps)):
        lazy_schedule.eager_step(weights, step, model(step), everyone, update, owed)
    return {name: list(array) for name, array in weights.arrays.items()}, seen


# Runs without Hypothesis.


def random_step(rng: Any, sizes: dict[str, int], most: int = 3) -> FastStep:
    """Up to three examples of up to `most` ids a bag; often rows announced or looked at; now and then all settled."""

    def ids(name: str, most: int) -> list[int]:
        return rng.integers(0, sizes[name], size=int(rng.integers(0, most + 1))).tolist()

    examples = int(rng.integers(0, 4))
    bags = {name: [ids(name, most) for _ in range(examples)] for name in sizes}
    ahead, looked = ({name: ids(name, 2) for name in sizes} for _ in range(2))
    return FastStep(
        bags, ahead, looked if rng.integers(0, 2) else {n: [] for n in sizes}, bool(rng.integers(0, 4) == 0)
    )


def wide_run(rng: Any) -> tuple[dict[str, int], list[FastStep]]:
    """Five steps on tables of 300 to 400 rows: a bag, an announcement and a prediction of hundreds of ids."""
    sizes = {name: int(rng.integers(300, 401)) for name in FEATURES}

    def ids(name: str) -> list[int]:
        return rng.permutation(sizes[name]).tolist()

    nothing: dict[str, list[int]] = {name: [] for name in FEATURES}
    everything = {name: ids(name) for name in FEATURES}
    steps = [
        FastStep({n: [ids(n)[:290], ids(n)[:9]] for n in FEATURES}, nothing, nothing, settle=False),
        FastStep({n: [[0]] for n in FEATURES}, everything, nothing, settle=False),
        FastStep({n: [[1], []] for n in FEATURES}, nothing, nothing, settle=False),
        FastStep({n: [ids(n)[:5]] for n in FEATURES}, nothing, everything, settle=False),
    ]
    return sizes, [FastStep({n: [] for n in FEATURES}, nothing, nothing, settle=False), *steps]
