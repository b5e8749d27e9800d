"""The names of the vertebrae, and the numbers that they have in masks.

The numbers are those of the data sets: *rsna* from the competition's data page, *verse* from
Sekuboyina et al., VerSe (Medical Image Analysis 73, 2021), *totalsegmentator* from the class map of
TotalSegmentator version 2 (Wasserthal et al., Radiology: AI 5(5), 2023).
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from storage_schemas.errors import UsageError

CERVICAL = tuple(f"C{i}" for i in range(1, 8))
THORACIC = tuple(f"T{i}" for i in range(1, 13))
LUMBAR = tuple(f"L{i}" for i in range(1, 6))

LEVELS = CERVICAL + THORACIC + LUMBAR
"""Every level that a crop may be stored under, from head to feet."""

LEVEL_NUMBERS: Mapping[str, int] = MappingProxyType(
    {level: 1 + i for i, level in enumerate(LEVELS)}
)
"""Values of the store's own label arrays: C1 to C7 are 1 to 7, T1 to T12 8 to 19, L1 to L5 20 to
24."""


def _numbered(first: int, levels: Iterable[str], step: int = 1) -> dict[int, str]:
    return {first + step * i: level for i, level in enumerate(levels)}


MASK_LABELS: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "rsna": MappingProxyType(_numbered(1, CERVICAL + THORACIC)),
        "verse": MappingProxyType(_numbered(1, CERVICAL + THORACIC + LUMBAR)),
        # Counted from the sacrum upwards: L5 is 27 and C1 is 50.
        "totalsegmentator": MappingProxyType(_numbered(27, reversed(LEVELS))),
    }
)
"""For each data set's convention, the level by the value of a mask's voxels."""


def parse_levels(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of levels.

    Parameters
    ----------
    text : str
        For example ``C1,C2`` or ``T11,T12``.

    Returns
    -------
    tuple of str
        Levels from head to feet, without repeats.

    Raises
    ------
    UsageError
        ``config-invalid`` where a name is not in `LEVELS`, or none is given.
    """
    names = {name.strip().upper() for name in text.split(",") if name.strip()}
    if unknown := sorted(names - set(LEVELS)):
        raise UsageError("config-invalid", f"levels are {LEVELS[0]} to {LEVELS[-1]}, not {unknown}")
    if not names:
        raise UsageError("config-invalid", "no level is named")
    return tuple(level for level in LEVELS if level in names)
