"""Canonical bytes of JSON values and voxels: equal values have equal bytes and equal digests."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def canonical_json(document: Any) -> bytes:
    """Encode as JSON with sorted keys, without spaces, with a newline at the end.

    Parameters
    ----------
    document : object
        Plain JSON values.

    Raises
    ------
    ValueError
        On NaN or infinity.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def sha256_json(document: Any) -> str:
    """Return the SHA-256 of the canonical JSON, in hex digits."""
    return hashlib.sha256(canonical_json(document)).hexdigest()


def sha256_voxels(data: "NDArray[Any]") -> str:
    """Return the SHA-256 of an array's little-endian, C-order bytes, in hex digits."""
    import numpy as np  # costs 0.1 s, which help and whoever reads settings need not pay

    little = np.ascontiguousarray(data, data.dtype.newbyteorder("<"))
    return hashlib.sha256(little.data.cast("B")).hexdigest()
