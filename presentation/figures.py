"""SVG figures for HTML pages, which inherit the text colour and the typeface of the page."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

BLUE, ORANGE, GREEN, GREY = "#3d8fd1", "#e08a00", "#2a9d77", "#8b95a0"
"""Colours that differ on light and dark backgrounds and with colour blindness."""
INK = "#010203"
"""Placeholder that `svg_of` replaces with ``currentColor``."""
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
    """Apply the style of the pages' figures to matplotlib, as a context manager."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(width: float = 6.4, height: float = 3.2) -> tuple[Figure, Axes]:
    """Create an empty figure with a transparent background.

    Parameters
    ----------
    width, height : float
        Size of the figure in inches.
    """
    figure = Figure((width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    return figure, axes


def png_of(picture: NDArray[np.float64]) -> bytes:
    """Return a picture as a PNG file of the same pixels.

    Parameters
    ----------
    picture : ndarray, shape (rows, columns, 3), float64
        Red, green and blue, 0 to 1; what lies outside is clipped.
    """
    stream = io.BytesIO()
    matplotlib.image.imsave(stream, np.clip(picture, 0, 1), format="png")
    return stream.getvalue()


def svg_of(figure: Figure, name: str) -> str:
    """Convert a figure to an SVG element for an HTML page.

    Equal figures give equal text.

    Parameters
    ----------
    figure : Figure
        Figure to convert.
    name : str
        Prefix of the ids in the element, unique on the page.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # SVG in HTML needs no XML namespaces.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    # The page sets the size and the typeface.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", text)
