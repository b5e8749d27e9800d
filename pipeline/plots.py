"""Plots of numbers for the report: SVG that takes its ink from the page, light or dark."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.histogram import HU_EDGES
from pipeline.runlog import LoggedRun

BINS = 60
"""Points along the throughput of a run."""
_BLUE, _ORANGE = "#3d8fd1", "#e08a00"
# A colour that nobody would choose, exchanged for the page's own.
_INK = "#010203"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "cspine",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
}


def plot_hu(counts: Mapping[str, NDArray[np.int64]]) -> str:
    """The share of voxels at each HU, a line for each name, on a logarithmic scale."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        for (name, voxels), colour in zip(counts.items(), (_BLUE, _ORANGE), strict=False):
            share = 100 * voxels / max(1, voxels.sum())
            axes.stairs(share, HU_EDGES, color=colour, label=name, fill=True, alpha=0.25)
            axes.stairs(share, HU_EDGES, color=colour, linewidth=1.2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("HU, in bins of 20")
        axes.set_ylabel("% of voxels")
        axes.legend(frameon=False, loc="upper right")
        return _svg(figure, "hu")


def plot_mean_hu(values: Mapping[str, Sequence[float]]) -> str:
    """The mean HU inside each mask, a box for each level: a mask off the bone is an outlier."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        axes.boxplot(
            [values[level] for level in values],
            tick_labels=list(values),
            patch_artist=True,
            widths=0.55,
            medianprops={"color": _INK, "linewidth": 1.2},
            boxprops={"facecolor": f"{_BLUE}55", "edgecolor": _BLUE},
            whiskerprops={"color": _BLUE},
            capprops={"color": _BLUE},
            flierprops={"markeredgecolor": _ORANGE, "markersize": 4},
        )
        axes.set_ylabel("mean HU inside the mask")
        return _svg(figure, "mean-hu")


def plot_throughput(run: LoggedRun) -> str:
    """Slices a second along a run."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        edges, rates = run.rates(BINS)
        unit, name = (3600, "hours") if run.seconds > 7200 else (60, "minutes")
        if run.seconds < 180:
            unit, name = 1, "seconds"
        mean = sum(row.slices for row in run.rows) / run.seconds
        axes.stairs(rates, edges / unit, color=_BLUE, fill=True, alpha=0.25)
        axes.stairs(rates, edges / unit, color=_BLUE, linewidth=1.2)
        axes.axhline(mean, color=_ORANGE, linewidth=1, linestyle="--", label=f"mean {mean:,.0f}")
        axes.set_xlabel(f"{name} since the start")
        axes.set_ylabel("slices a second")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        return _svg(figure, "throughput")


def _figure() -> tuple[Figure, Axes]:
    figure = Figure((6.4, 3.2), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element whose ids are its own; the same figure gives the same text."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Inside HTML, SVG needs no names of its own.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    # The page sets the size and the typeface.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", text)
