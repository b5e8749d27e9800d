"""Slices, pages and files as ordinary buckets hold them, for tests of what is read of a study."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import made_dicom

ROWS, COLUMNS = 12, 10
PAGE = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
Objects = dict[str, bytes]


def words(z: float, seed: int = 0) -> NDArray[np.uint16]:
    """The stored words of the slice at `z` of the scan `seed`: no two are alike."""
    rng = np.random.default_rng([seed, round(1000 * (z + 1000))])
    return rng.integers(0, 4096, (ROWS, COLUMNS), np.uint16)


def one_slice(z: float, seed: int = 0, number: int | None = None, **fields: Any) -> bytes:
    """One slice at `z` mm; its number ascends with z unless it is given."""
    series = fields.get("SeriesInstanceUID", made_dicom.SERIES)
    number = round(10 * z) + 1 if number is None else number
    given = {
        "ImagePositionPatient": [0, 0, z],
        "InstanceNumber": number,
        "SOPInstanceUID": f"{series}.{seed + 1}.{abs(number)}",
        "BitsStored": 12,
        **fields,
    }
    return made_dicom.make_object(words(z, seed), **given)


def stack(
    places: Iterable[float], seed: int = 0, name: str = "s", first: int = 1, **fields: Any
) -> Objects:
    """Slices of one scan, numbered in the order of `places`."""
    return {
        f"{name}{index}.dcm": one_slice(z, seed, first + index, **fields)
        for index, z in enumerate(places)
    }


def hounsfield(places: Iterable[float], seed: int = 0) -> NDArray[np.int16]:
    """The volume that `stack` holds."""
    return np.stack([words(z, seed).astype(np.int16) - 1024 for z in places])


def renamed(objects: Mapping[str, bytes], folder: str) -> Objects:
    """The same objects in a folder."""
    return {f"{folder}/{key}": data for key, data in objects.items()}
