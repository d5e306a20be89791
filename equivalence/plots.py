"""The report's plots as inline SVG that follows the page's light or dark colours; no scripts, fonts or links in it."""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

# Colours are placeholders here; `_svg` turns them into the page's own, which differ in light and dark.
_INK, _GRID, _FIRST, _SECOND = "#010101", "#020202", "#030303", "#040404"
_PAGE_COLOURS = {_INK: "currentColor", _GRID: "var(--rule)", _FIRST: "var(--first)", _SECOND: "var(--second)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "samelaw",
    "font.size": 11,
    "font.family": ["DejaVu Sans"],
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Curve:
    """Utility of one twin by step."""

    steps: Sequence[int]
    loss: Sequence[float]
    auc: Sequence[float]

    @classmethod
    def of(cls, value: Any) -> Curve:
        """From a mapping or an object with steps, loss and auc."""
        if isinstance(value, Mapping):
            return cls(value["steps"], value["loss"], value["auc"])
        return cls(value.steps, value.loss, value.auc)


def noise_quantiles(quantiles: Mapping[str, Mapping[str, Any]]) -> str:
    """Quantiles of the standardised noise against those of the normal law, and their difference below."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 5.0), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.3])
        ends = [-4.0, 4.0]
        for (kind, data), colour, marker in zip(quantiles.items(), (_FIRST, _SECOND), "o^", strict=False):
            expected = stats.norm.ppf(np.asarray(data["probability"]))
            found = np.asarray(data["found"])
            ends = [float(expected.min()), float(expected.max())]
            top.plot(expected, found, marker, ms=3.5, color=colour, label=kind)
            bottom.plot(expected, found - expected, marker, ms=3, color=colour)
            p = np.asarray(data["probability"])
            spread = stats.norm.isf(5e-4) * np.sqrt(p * (1 - p) / data["samples"]) / stats.norm.pdf(expected)
            bottom.fill_between(expected, -spread, spread, color=colour, alpha=0.18, lw=0)
        top.plot(ends, ends, color=_INK, lw=0.8, label="the law")
        bottom.axhline(0, color=_INK, lw=0.8)
        top.set_ylabel("received noise, in its known std")
        top.legend(loc="upper left")
        bottom.set_ylabel("difference")
        bottom.set_xlabel("quantile of the normal law")
        _symmetric(bottom)
        return _svg(figure, "Quantiles of the received noise against the normal law")


def variance_by_steps_owed(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Variance received against steps owed, with the variance owed as lines; their ratio below."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 5.0), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 2])
        looks = zip(groups.items(), (_FIRST, _SECOND), "o^", (0.97, 1.03), strict=False)
        for (kind, bins), colour, marker, aside in looks:
            x = aside * np.array([b["steps_owed"] for b in bins])
            ratio = np.array([b["received_over_owed"] for b in bins])
            owed = np.array([b["owed"] for b in bins])
            low, high = (np.array([b[k] for b in bins]) for k in ("usual_low", "usual_high"))
            top.plot(x, owed, color=colour, lw=1, label=f"owed, {kind}")
            top.plot(x, ratio * owed, marker, ms=5, color=colour, label=f"received, {kind}")
            bottom.errorbar(
                x, np.ones_like(x), [1 - low, high - 1], fmt="none", ecolor=colour, elinewidth=6, alpha=0.25
            )
            bottom.plot(x, ratio, marker, ms=5, color=colour)
        bottom.axhline(1, color=_INK, lw=0.8)
        top.set(xscale="log", yscale="log", ylabel="variance of one value")
        bottom.set(xlabel="steps owed when the row was settled (mean of the group)", ylabel="received / owed")
        top.legend(loc="best", fontsize=10)
        _whole_numbers(bottom)
        return _svg(figure, "Variance received by a row against the steps that it owed")


def utility(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Held-out AUC and loss by step, one row of panels a run; the eager twin is rings around the lazy one's line."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 0.5 + 2.1 * len(runs)), layout="constrained")
        panels = figure.subplots(len(runs), 2, squeeze=False, sharex="row")
        for (name, twins), (left, right) in zip(runs.items(), panels, strict=True):
            for twin, value in twins.items():
                curve = Curve.of(value)
                eager = twin == "eager"
                look: dict[str, Any] = (
                    {"ls": "none", "marker": "o", "ms": 7, "mfc": "none", "mew": 1.4, "color": _SECOND}
                    if eager
                    else {"marker": ".", "color": _FIRST}
                )
                left.plot(curve.steps, curve.auc, label=f"{twin} trainer", **look)
                right.plot(curve.steps, curve.loss, **look)
            left.set_ylabel("AUC")
            right.set_ylabel("loss")
            left.set_title(name, loc="left")
            for panel in (left, right):
                panel.set_xlabel("step")
                panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        handles, labels = panels[0][0].get_legend_handles_labels()
        if len(labels) > 1:
            figure.legend(handles, labels, loc="outside upper right", ncols=2)
        return _svg(figure, "Held-out AUC and loss by step")


def delays(at_most: Sequence[int], settlements: Sequence[int]) -> str:
    """How many steps rows owed when they were settled."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 2.8), layout="constrained")
        axes = figure.subplots()
        starts = [1, *(edge + 1 for edge in at_most[:-1])]
        names = [str(b) if a >= b else f"{a}–{b}" for a, b in zip(starts, at_most, strict=True)]
        axes.bar(range(len(names)), list(settlements), color=_FIRST)
        axes.set_xticks(range(len(names)), names, fontsize=11 if len(names) < 9 else 9)
        axes.set(xlabel="steps owed when the row was settled", ylabel="settlements")
        axes.grid(False, axis="x")
        return _svg(figure, "How many steps rows owed when they were settled")


def epsilon(curve: Any) -> str:
    """Epsilon by step: a line, and the band between its bounds where they are given."""
    data = _epsilon_columns(curve)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        axes = figure.subplots()
        if "lower" in data and "upper" in data:
            axes.fill_between(data["steps"], data["lower"], data["upper"], color=_FIRST, alpha=0.25, lw=0)
        axes.plot(data["steps"], data["estimate" if "estimate" in data else "upper"], color=_FIRST)
        axes.set(xlabel="steps run", ylabel="epsilon")
        axes.set_ylim(bottom=0)
        return _svg(figure, "Epsilon by step")


def _epsilon_columns(curve: Any) -> dict[str, np.ndarray]:
    """From a mapping or object of columns, or from rows (step, epsilon) or (step, lower, estimate, upper)."""
    names = ("steps", "lower", "estimate", "upper")
    if isinstance(curve, Mapping):
        columns = {name: curve[name] for name in names if name in curve}
    elif hasattr(curve, "steps"):
        columns = {name: getattr(curve, name) for name in names if hasattr(curve, name)}
    else:
        rows = np.asarray(list(curve), dtype=np.float64)
        keys = ("steps", "estimate") if rows.shape[1] == 2 else names
        columns = dict(zip(keys, rows.T, strict=True))
    return {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}


def _symmetric(axes: Axes) -> None:
    low, high = axes.get_ylim()
    reach = max(abs(low), abs(high))
    axes.set_ylim(-reach, reach)


def _whole_numbers(axes: Axes) -> None:
    """Plain labels on a logarithmic axis of steps."""
    low, high = axes.get_xlim()
    ticks = [2**k for k in range(32) if low <= 2**k <= high]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()


def _svg(figure: Figure, label: str) -> str:
    """The figure as one <svg> element: page colours, ids of its own, nothing that points outside."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # a rule for every element of the page
    prefix = f"plot-{hashlib.sha256(text.encode()).hexdigest()[:8]}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = text.replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    for placeholder, colour in _PAGE_COLOURS.items():
        text = text.replace(placeholder, colour)
    text = text.replace("'DejaVu Sans'", "inherit").replace("DejaVu Sans", "inherit")
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'class="plot"', text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)
