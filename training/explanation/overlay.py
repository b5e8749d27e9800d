"""Key slices as colour images: in grey, and with the heat map over them."""

import matplotlib
import numpy as np
from numpy.typing import NDArray

from training.explanation.attribution import KeySlice

_HEAT = 0.55
"""Opacity of the heat map where it is hottest."""


def grey(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A picture as red, green and blue, shape (size, size, 3), 0 to 1."""
    return np.repeat(picture[..., None] / 255, 3, axis=2)


def shade(key: KeySlice) -> NDArray[np.float64]:
    """The same, with its heat over it."""
    heat = key.heat.astype(np.float64)[..., None]
    colours = matplotlib.colormaps["inferno"](key.heat)[..., :3]
    shaded: NDArray[np.float64] = grey(key.picture) * (1 - _HEAT * heat) + colours * _HEAT * heat
    return shaded
