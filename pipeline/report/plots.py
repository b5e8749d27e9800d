"""Plots of the report: HU, mean HU of the vertebrae, and throughput."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.report.histogram import HU_EDGES
from pipeline.runlog import LoggedRun
from presentation.figures import BLUE, INK, ORANGE, new_figure, page_style, svg_of

BINS = 60
"""Number of time bins in the plot of a run's throughput."""


def plot_hu(counts: Mapping[str, NDArray[np.int64]]) -> str:
    """Plot histograms of HU on a logarithmic scale.

    Parameters
    ----------
    counts : mapping of str to ndarray, shape (bins,), int64
        Voxels in each bin of `pipeline.report.histogram.HU_EDGES`, by the name of the curve.
    """
    with page_style():
        figure, axes = new_figure()
        for (name, voxels), colour in zip(counts.items(), (BLUE, ORANGE), strict=False):
            share = 100 * voxels / max(1, voxels.sum())
            axes.stairs(share, HU_EDGES, color=colour, label=name, fill=True, alpha=0.25)
            axes.stairs(share, HU_EDGES, color=colour, linewidth=1.2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("HU, in bins of 20")
        axes.set_ylabel("% of voxels")
        axes.legend(loc="upper right")
        return svg_of(figure, "hu")


def plot_mean_hu(values: Mapping[str, Sequence[float]]) -> str:
    """Plot the mean HU inside the masks, one box per level; outliers are misplaced masks.

    Parameters
    ----------
    values : mapping of str to sequence of float
        Mean HU of each vertebra, by level.
    """
    with page_style():
        figure, axes = new_figure()
        axes.boxplot(
            [values[level] for level in values],
            tick_labels=list(values),
            patch_artist=True,
            widths=0.55,
            medianprops={"color": INK, "linewidth": 1.2},
            boxprops={"facecolor": f"{BLUE}55", "edgecolor": BLUE},
            whiskerprops={"color": BLUE},
            capprops={"color": BLUE},
            flierprops={"markeredgecolor": ORANGE, "markersize": 4},
        )
        axes.set_ylabel("mean HU inside the mask")
        return svg_of(figure, "mean-hu")


def plot_throughput(run: LoggedRun) -> str:
    """Plot the slices per second of a run over time."""
    with page_style():
        figure, axes = new_figure()
        edges, rates = run.rates(BINS)
        unit, name = (3600, "hours") if run.seconds > 7200 else (60, "minutes")
        if run.seconds < 180:
            unit, name = 1, "seconds"
        mean = sum(row.slices for row in run.rows) / run.seconds
        axes.stairs(rates, edges / unit, color=BLUE, fill=True, alpha=0.25)
        axes.stairs(rates, edges / unit, color=BLUE, linewidth=1.2)
        axes.axhline(mean, color=ORANGE, linewidth=1, linestyle="--", label=f"mean {mean:,.0f}")
        axes.set_xlabel(f"{name} since the start")
        axes.set_ylabel("slices per second")
        axes.set_ylim(bottom=0)
        axes.legend()
        return svg_of(figure, "throughput")
