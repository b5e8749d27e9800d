"""Limits on the memory and time that an object's header can cause to be used.

Sizes are checked as Python integers, which cannot overflow, and before any decoding or allocation:
a 6 kB file that claims 40,000 x 40,000 pixels costs a few microseconds.
"""

from dataclasses import dataclass
from typing import Annotated

from presentation.setting_types import limits
from presentation.settings import check

SAFETY_INFLATION = 1 << 24
"""Inflated size in bytes that is allowed for any deflated object."""
Pixels = Annotated[int, limits("pixels", ge=1)]
Bytes = Annotated[int, limits("bytes", ge=1)]


@dataclass(frozen=True)
class Limits:
    """Budgets of one study; the defaults are enough for every CT that a scanner makes today.

    Parameters
    ----------
    frame_pixels : int
        Largest number of pixels of one frame, Rows x Columns. The largest CT matrix in clinical use
        is 2048 x 2048.
    object_pixels : int
        Largest number of pixels of one object, Rows x Columns x frames.
    volume_bytes : int
        Largest size of the whole stack as int16, in bytes. 2 GiB hold 4,096 slices of 512 x 512.
    header_bytes : int
        Largest size of a deflated data set before its pixel data, in bytes. Enhanced CT has about
        2 kB a frame.
    inflation : int
        Largest size of a deflated object after inflation, as a multiple of its own size (but see
        `SAFETY_INFLATION`). CT reaches 2 to 3, an empty image 60; deflate itself ends at 1,032.
    child_seconds : float
        Time limit of one frame, in seconds, for a decoder in a process of its own.
    """

    frame_pixels: Pixels = 1 << 24
    object_pixels: Pixels = 1 << 30
    volume_bytes: Bytes = 1 << 31
    header_bytes: Bytes = 1 << 23
    inflation: Annotated[int, limits("factor", ge=1)] = 64
    child_seconds: Annotated[float, limits("s", gt=0)] = 30.0

    def __post_init__(self) -> None:
        check(self)


ACCEPTED = Limits(1 << 62, 1 << 62, 1 << 62, 1 << 62, 1 << 20, 3600.0)
"""Budgets for objects that an earlier run has accepted, possibly with other limits."""
