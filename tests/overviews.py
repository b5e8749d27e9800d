"""Stores that hold nothing but overviews with their vertebrae, for tests of the localizer."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage_schemas import arrays
from storage_schemas.catalog import make_table
from storage_schemas.store import OVERVIEW, OVERVIEW_LEVELS, VOLUMES, StudyStore
from storage_schemas.targets import COMPETITION

SIDE = 32
SPACING_MM = (6.0, 4.0, 4.0)
LEVELS = 8


def make_overview(seed: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A spine of eight stacked blocks of bone, each wider than the one above."""
    random = np.random.default_rng(seed)
    hu = random.normal(40, 20, (SIDE, SIDE, SIDE)).astype(np.int16)
    levels = np.zeros(hu.shape, np.uint8)
    top, back, left = random.integers(-2, 3, 3)
    for number in range(1, LEVELS + 1):
        z = SIDE - 1 - 3 * number + top
        y, x, half = SIDE // 2 + back, SIDE // 2 + left, 2 + number // 2
        levels[z - 1 : z + 2, y - half : y + half, x - half : x + half] = number
    hu[levels > 0] += 500
    return hu, levels


def make_masked_store(folder: Path, studies: int = 6, *, unmasked: int = 0) -> StudyStore:
    """Two scanners; each second patient has two studies."""
    store = StudyStore.create(str(folder))
    affine = np.eye(4)
    affine[:3, :3] = np.diag(SPACING_MM)[::-1]
    rows: list[dict[str, object]] = []
    for number in range(studies + unmasked):
        study, masked = f"1.2.{number + 1}", number < studies
        hu, levels = make_overview(number)
        block = {"cspine": {"study": study, "affine": affine.tolist()}}
        objects = arrays.create_array(f"{study}/{OVERVIEW}", hu, block)
        if masked:
            objects |= arrays.create_array(f"{study}/{OVERVIEW_LEVELS}", levels, block)
        store.objects.put_all({f"{VOLUMES}/{key}": data for key, data in objects.items()})
        rows.append(
            {
                "study": study,
                "patient": f"patient {number * 2 // 3}",
                "outcome": "committed",
                "kind": "",
                "objects": 1,
                "refused": 0,
                "source_bytes": 1,
                "scanner": f"scanner {number * 2 // 3 % 2}",
                "overview_levels": masked,
            }
        )
    store.write_table("studies", make_table("studies", rows, COMPETITION))
    return store
