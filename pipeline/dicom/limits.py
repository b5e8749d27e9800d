"""What an object may cost before anything believes its header.

Every figure is checked as Python integers, so none of them can overflow, and before a decoder or an
allocation sees it: a 6 kB file that claims 40,000 x 40,000 pixels costs a few microseconds.
"""

from dataclasses import dataclass

SAFETY_INFLATION = 1 << 24
"""Bytes that a deflated object may always grow to, however small it is."""


@dataclass(frozen=True)
class Limits:
    """Budgets of one study; the defaults hold every CT that a scanner makes today.

    Parameters
    ----------
    frame_pixels : int
        Rows x Columns of one frame. The largest CT matrix in clinical use is 2048 x 2048.
    object_pixels : int
        Rows x Columns x frames of one object.
    volume_bytes : int
        The whole stack as int16. 2 GiB hold 4,096 slices of 512 x 512.
    header_bytes : int
        Of a deflated data set before its pixel data. Enhanced CT has about 2 kB a frame.
    inflation : int
        How many times its own size a deflated object may grow to (but see `SAFETY_INFLATION`).
        CT reaches 2 to 3, an empty image 60; deflate itself ends at 1,032.
    child_seconds : float
        How long a decoder in a sacrificial process may take for one frame.
    """

    frame_pixels: int = 1 << 24
    object_pixels: int = 1 << 30
    volume_bytes: int = 1 << 31
    header_bytes: int = 1 << 23
    inflation: int = 64
    child_seconds: float = 30.0
