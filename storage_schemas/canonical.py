"""One way to turn values into bytes, so that equal values have equal bytes and equal digests."""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray


def canonical_json(document: Any) -> bytes:
    """JSON with sorted keys and no spare space; raises ValueError on NaN or infinity."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def sha256_json(document: Any) -> str:
    """SHA-256 of the canonical JSON, as hex digits."""
    return hashlib.sha256(canonical_json(document)).hexdigest()


def sha256_voxels(data: NDArray[Any]) -> str:
    """SHA-256 of an array's little-endian, C-order bytes, as hex digits."""
    little = np.ascontiguousarray(data, data.dtype.newbyteorder("<"))
    return hashlib.sha256(little.data.cast("B")).hexdigest()
