"""Key slices as RGB images, in grey and with the heat map as an overlay."""

import matplotlib
import numpy as np
from numpy.typing import NDArray

from training.explanation.attribution import KeySlice

_HEAT = 0.55
"""Largest opacity of the heat map."""


def grey(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Convert a grey picture to RGB, shape (size, size, 3), values 0 to 1."""
    return np.repeat(picture[..., None] / 255, 3, axis=2)


def shade(key: KeySlice) -> NDArray[np.float64]:
    """Overlay the heat map on the key slice, shape (size, size, 3), values 0 to 1."""
    heat = key.heat.astype(np.float64)[..., None]
    colours = matplotlib.colormaps["inferno"](key.heat)[..., :3]
    shaded: NDArray[np.float64] = grey(key.picture) * (1 - _HEAT * heat) + colours * _HEAT * heat
    return shaded
