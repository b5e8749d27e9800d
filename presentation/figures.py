"""Figures for pages: SVG that takes its ink and its typeface from the page, light or dark."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#3d8fd1", "#e08a00", "#2a9d77", "#8b95a0"
"""Told apart on light and on dark paper, and by people who see few colours."""
INK = "#010203"
"""A colour that nobody would choose, exchanged for the page's own."""
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "cspine",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
}


@contextmanager
def page_style() -> Iterator[None]:
    """Draw as pages do."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(width: float = 6.4, height: float = 3.2) -> tuple[Figure, Axes]:
    """An empty figure without paper; sizes in inches."""
    figure = Figure((width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    return figure, axes


def svg_of(figure: Figure, name: str) -> str:
    """The figure as an SVG element whose ids begin with `name`.

    The same figure gives the same text.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Inside HTML, SVG needs no names of its own.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    # The page sets the size and the typeface.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", text)
