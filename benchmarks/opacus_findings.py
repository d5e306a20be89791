"""Which inputs of nn.Embedding and nn.EmbeddingBag does Opacus 1.6 clip wrongly, and what does samelaw do with them?

Expect: in `hooks` mode a wrong gradient at most (whatever it is, it is clipped); in `ghost` mode, where the norm and
the gradient are computed apart, a contribution beyond the clip norm wherever the norm is too small.
Compare: the clipped sum that Opacus hands to the optimiser, at noise 0, with torch autograd run on each example alone.

    pip install torch==2.13.0 && pip install --no-deps opacus==1.6.0 opt_einsum
    python benchmarks/opacus_findings.py [--json FILE]

Every input is the smallest that shows its finding. The script prints what it measures; if a later version of Opacus
is right where 1.6.0 was wrong, the table says "exact". Without Opacus it says so and stops.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

MODES = ("hooks", "ghost")
CLIP_NORM = 1.0
TARGET = -10.0  # far from every output, so that every gradient is longer than the clip norm

# Opacus scales by C / (norm + 1e-6) with norms above 10 here (1e-7 relative), and sums at most 20 float32 products
# (20 * 2^-24 = 1.2e-6 relative). Whatever is further off than 1e-5 C is not rounding.
ROUNDING = 1e-5


class Readout(nn.Module):
    """A table and nothing else trainable: the sum of everything it reads."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.table(*args, **kwargs).flatten(1).sum(1)


@dataclass(frozen=True)
class Call:
    """Arguments of one forward pass of a table."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One table, one batch, and the same examples one by one.

    Attributes:
        name: what is special about it.
        shown: the input, as a reader would type it.
        table: makes the table, 3 rows of 2.
        batch: the call that reads all examples.
        alone: one call per example.
    """

    name: str
    shown: str
    table: Callable[[], nn.Module]
    batch: Call
    alone: tuple[Call, ...]


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def bag(**options: Any) -> Callable[[], nn.Module]:
    return lambda: filled(nn.EmbeddingBag(3, 2, **options))


def embedding(**options: Any) -> Callable[[], nn.Module]:
    return lambda: filled(nn.Embedding(3, 2, **options))


def filled(table: Any) -> nn.Module:
    with torch.no_grad():
        table.weight.copy_(torch.arange(table.weight.numel()).reshape(table.weight.shape) / 10)
    return table


def single(name: str, shown: str, table: Callable[[], nn.Module], *args: Any, **kwargs: Any) -> Case:
    """A case of one example: alone and in the batch it is the same call."""
    call = Call(args, kwargs)
    return Case(name, shown, table, call, (call,))


WEIGHTS = torch.tensor([3.0, 1.0])
CASES = (
    single("distinct ids", "Bag(sum): ids [0, 1]", bag(mode="sum"), ids(0, 1), ids(0)),
    single("id twice in a bag", "Bag(sum): ids [1, 1]", bag(mode="sum"), ids(1, 1), ids(0)),
    single("id 20 times in a bag", "Bag(sum): ids [1] * 20", bag(mode="sum"), ids(*[1] * 20), ids(0)),
    single("id twice beside another", "Bag(sum): ids [1, 1, 2]", bag(mode="sum"), ids(1, 1, 2), ids(0)),
    single("id twice, mean", "Bag(mean): ids [1, 1, 2]", bag(mode="mean"), ids(1, 1, 2), ids(0)),
    single("max pooling", "Bag(max): ids [1, 2]", bag(mode="max"), ids(1, 2), ids(0)),
    single(
        "weights, by keyword",
        "Bag(sum): ids [1, 2], per_sample_weights=[3, 1]",
        bag(mode="sum"),
        ids(1, 2),
        ids(0),
        per_sample_weights=WEIGHTS,
    ),
    single(
        "weights, by position", "Bag(sum): ids [1, 2], offsets, [3, 1]", bag(mode="sum"), ids(1, 2), ids(0), WEIGHTS
    ),
    single("offsets by keyword", "Bag(sum): ids [1, 2], offsets=[0]", bag(mode="sum"), ids(1, 2), offsets=ids(0)),
    single(
        "include_last_offset",
        "Bag(sum, include_last_offset): ids [1, 2], offsets [0, 2]",
        bag(mode="sum", include_last_offset=True),
        ids(1, 2),
        ids(0, 2),
    ),
    single("2-D input", "Bag(sum): ids [[1, 2]]", bag(mode="sum"), ids(1, 2)[None]),
    single("padding, sum", "Bag(sum, padding_idx=0): ids [0, 1]", bag(mode="sum", padding_idx=0), ids(0, 1), ids(0)),
    single("padding, mean", "Bag(mean, padding_idx=0): ids [0, 1]", bag(mode="mean", padding_idx=0), ids(0, 1), ids(0)),
    single(
        "19 paddings, mean",
        "Bag(mean, padding_idx=0): ids [0] * 19 + [1]",
        bag(mode="mean", padding_idx=0),
        ids(*[0] * 19, 1),
        ids(0),
    ),
    Case(
        "an empty bag",
        "Bag(sum): bags [1], []",
        bag(mode="sum"),
        Call((ids(1), ids(0, 1))),
        (Call((ids(1), ids(0))), Call((ids(), ids(0)))),
    ),
    single("sparse bag", "Bag(sum, sparse=True): ids [1, 2]", bag(mode="sum", sparse=True), ids(1, 2), ids(0)),
    single("id twice", "Embedding: ids [[1, 1]]", embedding(), ids(1, 1)[None]),
    Case("1-D input", "Embedding: ids [1, 2]", embedding(), Call((ids(1, 2),)), (Call((ids(1),)), Call((ids(2),)))),
    single("padding", "Embedding(padding_idx=0): ids [[0, 1]]", embedding(padding_idx=0), ids(0, 1)[None]),
    single("sparse", "Embedding(sparse=True): ids [[1, 2]]", embedding(sparse=True), ids(1, 2)[None]),
    Case(
        "scale_grad_by_freq",
        "Embedding(scale_grad_by_freq): ids [[1, 2], [1, 0]]",
        embedding(scale_grad_by_freq=True),
        Call((torch.stack([ids(1, 2), ids(1, 0)]),)),
        (Call((ids(1, 2)[None],)), Call((ids(1, 0)[None],))),
    ),
)


def exact_sum(case: Case) -> torch.Tensor:
    """The definition: each example's gradient by autograd on that example alone, clipped, then summed."""
    total = torch.zeros(3, 2)
    for call in case.alone:
        model = Readout(case.table())
        ((model(*call.args, **call.kwargs) - TARGET) ** 2).sum().backward()
        gradient = model.table.weight.grad
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        norm = float(gradient.norm())
        total += gradient * (min(1.0, CLIP_NORM / norm) if norm > 0 else 0.0)
    return total


@dataclass
class Private:
    """What PrivacyEngine.make_private returns, whatever the mode."""

    engine: Any
    model: nn.Module
    optimizer: Any
    criterion: Any
    loader: Any

    def step(self, call: Call, targets: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        self.criterion(self.model(*call.args, **call.kwargs), targets).backward()
        self.optimizer.step()


def make_private(
    model: nn.Module, mode: str, *, noise: float = 0.0, examples: int = 2, seed: int | None = None, **options: Any
) -> Private:
    """Opacus by its front door, at learning rate 1 and a loss that sums."""
    from opacus import PrivacyEngine

    reduction = options.pop("loss_reduction", "sum")
    data = TensorDataset(torch.zeros(examples, 1))
    engine = PrivacyEngine()
    criterion = nn.MSELoss(reduction=reduction)
    made = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        criterion=criterion,
        data_loader=DataLoader(data, batch_size=options.pop("batch_size", examples)),
        noise_multiplier=noise,
        max_grad_norm=CLIP_NORM,
        loss_reduction=reduction,
        poisson_sampling=options.pop("poisson_sampling", False),
        noise_generator=None if seed is None else torch.Generator().manual_seed(seed),
        grad_sample_mode=mode,
    )
    if mode == "ghost":
        wrapped, optimizer, criterion, loader = made
    else:
        wrapped, optimizer, loader = made
    return Private(engine, wrapped, optimizer, criterion, loader)


def opacus_sum(case: Case, mode: str) -> torch.Tensor:
    """The clipped sum by which one step at noise 0 and learning rate 1 moves the table."""
    model = Readout(case.table())
    before = model.table.weight.detach().clone()
    private = make_private(model, mode, examples=len(case.alone))
    private.step(case.batch, torch.full((len(case.alone),), TARGET))
    return before - model.table.weight.detach()


def samelaw_sum(case: Case) -> torch.Tensor:
    """The same clipped sum by samelaw's lazy trainer, before noise."""
    from samelaw.contract.noise import NoiseKey
    from samelaw.contract.schedule import Schedule
    from samelaw.contract.spec import PrivacySpec
    from samelaw.contract.trace import Batch
    from samelaw.fast.trainer import LazyTrainer

    count = len(case.alone)

    def loss_fn(model: nn.Module, _: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = model(*case.batch.args, **case.batch.kwargs)
        return (outputs - TARGET) ** 2, outputs

    spec = PrivacySpec(
        clip_norm=CLIP_NORM,
        noise_multiplier=1.0,
        sampling_rate=1.0,
        expected_batch_size=1.0,
        delta=1e-5,
        schedule=Schedule.constant(1.0, steps=1),
    )
    trainer = LazyTrainer(Readout(case.table()), spec, NoiseKey.from_seed(0), examples=count, loss_fn=loss_fn)
    nothing = np.zeros((count, 0), dtype=np.float32)
    batch = Batch(nothing, (), np.zeros(count, dtype=np.float32), np.arange(count))
    sums = trainer.gradient_sums(batch)
    dense = np.zeros((3, 2))
    for name, rows in sums.rows.items():
        dense[rows] = sums.sums[name] * 2.0**sums.exponent
    return torch.from_numpy(dense).float()


def judge(expected: torch.Tensor, found: Callable[[], torch.Tensor], examples: int) -> dict[str, Any]:
    """Compare one clipped sum with the exact one."""
    try:
        got = found()
    except Exception as error:  # whatever it raises is the finding
        return {"verdict": f"raises {type(error).__name__}", "message": " ".join(str(error).split())[:200]}
    length, off = float(got.norm()) / CLIP_NORM, float((got - expected).norm()) / CLIP_NORM
    if off <= ROUNDING:
        verdict = "exact"
    elif length > examples * (1 + ROUNDING):
        verdict = f"{length:.3g} C: beyond the bound"
    else:
        verdict = f"wrong by {off:.2g} C"
    return {"verdict": verdict, "norm_in_C": length, "off_in_C": off}


# --- what is not one clipped sum -----------------------------------------------------------------------------------


def empty_batch(mode: str, table: Callable[[], nn.Module], call: Call) -> str:
    """Poisson sampling draws an empty batch: it must cost a step of noise and nothing else."""
    model = Readout(table())
    before = model.table.weight.detach().clone()
    private = make_private(model, mode, noise=1.0, seed=0)
    try:
        private.step(call, torch.zeros(0))
    except Exception as error:
        return f"raises {type(error).__name__}"
    return "noise on every row" if bool((model.table.weight != before).all()) else "rows without noise"


def padding_row_moves(mode: str) -> float:
    """How far one step at noise multiplier 1 and zero gradient moves the padding row, which torch keeps fixed."""
    model = Readout(embedding(padding_idx=0)())
    before = model.table.weight.detach().clone()
    make_private(model, mode, noise=1.0, examples=1, seed=0).step(Call((ids(0, 1)[None],)), before[:2].sum()[None])
    return float((model.table.weight.detach() - before)[0].norm())


def max_norm_moves(mode: str) -> tuple[float, float]:
    """Moves of a row that is read and of one that is not, at noise 0 and zero gradient, when the table renormalises."""
    model = Readout(nn.Embedding(2, 1, max_norm=1.0))
    with torch.no_grad():
        model.table.weight.fill_(1000.0)
    make_private(model, mode, examples=1).step(Call((ids(0)[None],)), torch.ones(1))
    moved = (model.table.weight.detach() - 1000.0).abs()
    return float(moved[0]), float(moved[1])


def not_finite(mode: str) -> int:
    """Rows that one example with an infinite loss turns into NaN."""
    model = Readout(filled(nn.Embedding(3, 2)))
    private = make_private(model, mode, noise=1.0, seed=0)
    private.step(Call((torch.stack([ids(0, 1), ids(1, 2)]),)), torch.tensor([0.0, float("inf")]))
    return int(model.table.weight.isnan().any(1).sum())


def resumed_noise() -> tuple[list[str], bool]:
    """Keys of a checkpoint, and whether the step after resuming draws the noise of step 0 again."""

    def noise_of_next_step(private: Private, table: Any) -> torch.Tensor:
        # The target is the model's own output, so the gradient is zero and p.grad is the noise itself.
        private.step(Call((ids(0, 1)[None],)), table.weight.detach()[:2].sum()[None])
        return table.weight.grad.clone()

    table = nn.Embedding(3, 2)
    first = make_private(Readout(table), "hooks", noise=1.0, examples=1, seed=42)
    noise = [noise_of_next_step(first, table) for _ in range(2)]
    saved = io.BytesIO()
    first.engine.save_checkpoint(path=saved, module=first.model, optimizer=first.optimizer)
    again = nn.Embedding(3, 2)
    second = make_private(Readout(again), "hooks", noise=1.0, examples=1, seed=42)
    saved.seek(0)
    keys = sorted(torch.load(saved, weights_only=False))
    saved.seek(0)
    second.engine.load_checkpoint(path=saved, module=second.model, optimizer=second.optimizer)
    return keys, torch.equal(noise[0], noise_of_next_step(second, again))


def constants(examples: int) -> dict[str, float]:
    """What make_private derives from the size of the data set at batch_size=100."""
    model = Readout(nn.Embedding(3, 2))
    private = make_private(
        model, "hooks", examples=examples, batch_size=100, poisson_sampling=True, loss_reduction="mean"
    )
    return {
        "examples": examples,
        "expected_batch_size": private.optimizer.expected_batch_size,
        "sampling_rate": private.loader.sample_rate,
    }


def bytes_of_gradients(rows: int, dim: int, examples: int) -> int:
    """Bytes of the per-example gradients that one step builds for a bag table; ghost mode calls the same function."""
    from opacus.grad_sample.embedding import compute_embeddingbag_gradsampler

    table = nn.EmbeddingBag(rows, dim, mode="sum")
    reads = [torch.zeros(examples, dtype=torch.int64), torch.arange(examples)]
    made = compute_embeddingbag_gradsampler(table, reads, torch.zeros(examples, dim))
    return sum(gradient.numel() * gradient.element_size() for gradient in made.values())


# --- the report ----------------------------------------------------------------------------------------------------


def measure() -> dict[str, Any]:
    """Run everything once; seconds in all."""
    have_samelaw = importlib.util.find_spec("samelaw") is not None
    clipped: list[dict[str, Any]] = []
    for case in CASES:
        expected = exact_sum(case)
        row: dict[str, Any] = {"case": case.name, "input": case.shown}
        for mode in MODES:
            row[mode] = judge(expected, lambda: opacus_sum(case, mode), len(case.alone))  # noqa: B023
        if have_samelaw:
            row["samelaw"] = judge(expected, lambda: samelaw_sum(case), len(case.alone))  # noqa: B023
        clipped.append(row)
    keys, repeated = resumed_noise()
    return {
        "clipped_sums": clipped,
        "empty_batch": {
            f"{name}, {mode}": empty_batch(mode, table, call)
            for mode in MODES
            for name, table, call in (
                ("EmbeddingBag", bag(mode="sum"), Call((ids(), ids()))),
                ("Embedding", embedding(), Call((ids().reshape(0, 2),))),
            )
        },
        "padding_row_moves": {mode: padding_row_moves(mode) for mode in MODES},
        "max_norm_moves_read_and_unread": {mode: max_norm_moves(mode) for mode in MODES},
        "rows_made_nan_by_one_example": {mode: not_finite(mode) for mode in MODES},
        "resume": {"checkpoint_keys": keys, "noise_of_step_0_drawn_again": repeated},
        "constants_from_data": [constants(n) for n in (1000, 1001)],
        "gradient_bytes": {"rows": 20_000, "dim": 16, "examples": 64, "bytes": bytes_of_gradients(20_000, 16, 64)},
    }


def print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    arguments = parser.parse_args()
    try:
        import opacus
    except ImportError:
        print("Opacus is not installed here: nothing to compare. pip install --no-deps opacus==1.6.0 opt_einsum")
        return 0
    warnings.filterwarnings("ignore", module="opacus")
    warnings.filterwarnings("ignore", message="Full backward hook")
    found = measure()
    found["versions"] = {
        "opacus": opacus.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(f"Opacus {opacus.__version__}, torch {torch.__version__}: the clipped sum of a batch; expected: exact\n")
    columns = [name for name in (*MODES, "samelaw") if name in found["clipped_sums"][0]]
    table = [[row["case"], row["input"], *(row[c]["verdict"] for c in columns)] for row in found["clipped_sums"]]
    print_table([["case", "input", *columns], *table])
    print()
    print_table(
        [["other findings", "found"], *((k, str(v)) for k, v in found.items() if k not in ("clipped_sums", "versions"))]
    )
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)
            file.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
