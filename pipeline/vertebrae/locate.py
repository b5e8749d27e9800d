"""Where the vertebrae lie in a volume: by a given label mask, or by a network's sight of them.

Both end in the same thing, the voxels of each level on the volume's own grid. Not here: how much
around them is kept (`pipeline.vertebrae.cropping`), what a network's output means
(`pipeline.vertebrae.anatomy`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.vertebrae.anatomy import name_vertebrae
from pipeline.vertebrae.maskparts import MaskPart, resample_levels, resample_part, split_mask
from pipeline.vertebrae.nifti import LabelMask
from pipeline.vertebrae.onnx_network import Network
from pipeline.vertebrae.overview import overview_geometry
from storage_schemas.cubes import shrink_cube
from storage_schemas.errors import StudyError
from storage_schemas.geometry import Box, StackGeometry
from storage_schemas.localizer_card import LOCALIZED_LEVELS

BONE_HU = 100.0
"""Mean HU below which a mask does not lie on vertebrae: trabecular bone of the aged is about 100,
the cortex far above, muscle 50 (Hounsfield values as in the phantom's sources)."""
MIN_SHARE_INSIDE = 0.5
"""Of a mask's volume, the share that must lie in the CT."""
_NOT_FOUND = "vertebra-not-found"

Overview = tuple[NDArray[np.int16], NDArray[np.float64]]
"""The cube and its affine, from `pipeline.vertebrae.overview.make_overview`."""


@dataclass(frozen=True)
class LocatedVertebra:
    """One vertebra in a volume.

    Parameters
    ----------
    level : str
        From `storage_schemas.vertebrae.LEVELS`.
    extent : Box
        The least box of the volume that holds it.
    inside : ndarray, shape of the extent, bool
        Its voxels.
    mean_hu : float
        Over its voxels.
    score : float or None
        The localizer's confidence; None for a given mask.
    """

    level: str
    extent: Box
    inside: NDArray[np.bool_]
    mean_hu: float
    score: float | None = None


@dataclass(frozen=True)
class Localization:
    """What a localizer made of a study.

    Parameters
    ----------
    localizer : str
        Which one, with its convention or digest; empty where none could look.
    vertebrae : tuple of LocatedVertebra
        Those found, of the levels asked for.
    missing : mapping of str to (str, str)
        For each other level that was asked for its outcome, and why.
    overview_levels : ndarray, shape of the overview, uint8, or None
        A given mask on the overview's grid, as `resample_levels` makes it.
    """

    localizer: str
    vertebrae: tuple[LocatedVertebra, ...]
    missing: Mapping[str, tuple[str, str]]
    overview_levels: NDArray[np.uint8] | None = None


def locate_by_mask(
    hu: NDArray[np.int16],
    geometry: StackGeometry,
    overview: Overview,
    mask: LabelMask,
    convention: str,
    levels: Sequence[str],
) -> Localization:
    """Find vertebrae by a label mask, aligned by its affine.

    Parameters
    ----------
    hu : ndarray, shape (z, y, x), int16, HU
        The canonical volume.
    geometry : StackGeometry
        Its geometry.
    overview : tuple of ndarray
        Of the volume.
    mask : LabelMask
        From `pipeline.vertebrae.nifti.read_mask`.
    convention : str
        From `storage_schemas.vertebrae.MASK_LABELS`.
    levels : sequence of str
        The levels wanted.

    Raises
    ------
    StudyError
        ``mask-outside-volume`` or ``mask-off-bone``, with the measured figures, or
        ``vertebra-not-found`` where the mask holds none of the levels.
    """
    parts = split_mask(mask, convention)
    wanted = [part for part in parts if part.level in levels]
    located = [
        found for part in wanted if (found := _locate(hu, geometry, mask.index_from_lps, part))
    ]
    volume_mm3 = mask.voxel_mm3 * sum(np.count_nonzero(part.inside) for part in wanted)
    _check_overlap(located, geometry, volume_mm3)
    _check_bone(located)
    absent = dict.fromkeys(levels, (_NOT_FOUND, "the mask does not hold it"))
    return Localization(
        f"mask:{convention}",
        *_of_levels(levels, located, absent, "the mask holds"),
        resample_levels(mask, parts, overview_geometry(overview[1])),
    )


def locate_by_network(
    hu: NDArray[np.int16],
    geometry: StackGeometry,
    overview: Overview,
    network: Network,
    levels: Sequence[str],
) -> Localization:
    """Find vertebrae by what a network sees in the overview.

    Parameters
    ----------
    hu : ndarray, shape (z, y, x), int16, HU
        The canonical volume.
    geometry : StackGeometry
        Its geometry.
    overview : tuple of ndarray
        Of the volume.
    network : Network
        From `pipeline.vertebrae.onnx_network`.
    levels : sequence of str
        The levels wanted; it knows C1 to C7.

    Raises
    ------
    StudyError
        ``vertebra-not-found`` where none of the levels is found.
    """
    cube, affine = shrink_cube(*overview, network.size)
    named, missing = name_vertebrae(network.look(cube), affine)
    index_from_lps = np.asarray(np.linalg.inv(affine))
    located = []
    for vertebra in named:
        part = vertebra.part
        found = _locate(hu, geometry, index_from_lps, part, vertebra.score)
        if found is None:
            missing[part.level] = (_NOT_FOUND, "it lies between the slices")
        elif found.mean_hu < BONE_HU:
            why = f"mean HU inside it is {found.mean_hu:.0f}, bone is over {BONE_HU:.0f}"
            missing[part.level] = (_NOT_FOUND, why)
        else:
            located.append(found)
    for level in set(levels) - set(LOCALIZED_LEVELS):
        missing[level] = (_NOT_FOUND, "the localizer knows C1 to C7 only")
    return Localization(network.name, *_of_levels(levels, located, missing, "the localizer finds"))


def _locate(
    hu: NDArray[np.int16],
    geometry: StackGeometry,
    index_from_lps: NDArray[np.float64],
    part: MaskPart,
    score: float | None = None,
) -> LocatedVertebra | None:
    resampled = resample_part(index_from_lps, part, geometry)
    if resampled is None:
        return None
    extent, inside = resampled
    return LocatedVertebra(part.level, extent, inside, float(hu[extent][inside].mean()), score)


def _of_levels(
    levels: Sequence[str],
    located: Iterable[LocatedVertebra],
    missing: Mapping[str, tuple[str, str]],
    who: str,
) -> tuple[tuple[LocatedVertebra, ...], dict[str, tuple[str, str]]]:
    """What was found of the levels wanted, and why the others were not."""
    found = {vertebra.level: vertebra for vertebra in located if vertebra.level in levels}
    absent = {level: missing[level] for level in levels if level not in found}
    if not found:
        reasons = sorted({reason for _, reason in absent.values()})
        detail = f"{who} none of {', '.join(levels)}: {'; '.join(reasons)}"
        raise StudyError(_NOT_FOUND, detail)
    return tuple(found.values()), absent


def _check_overlap(
    located: list[LocatedVertebra], geometry: StackGeometry, volume_mm3: float
) -> None:
    voxel_mm3 = float(np.prod(geometry.spacing))
    seen_mm3 = voxel_mm3 * sum(np.count_nonzero(found.inside) for found in located)
    if volume_mm3 and seen_mm3 < MIN_SHARE_INSIDE * volume_mm3:
        raise StudyError(
            "mask-outside-volume",
            f"{seen_mm3 / volume_mm3:.0%} of the mask lies in the CT, at least "
            f"{MIN_SHARE_INSIDE:.0%} must",
        )


def _check_bone(located: list[LocatedVertebra]) -> None:
    if not located:
        return
    voxels = [np.count_nonzero(found.inside) for found in located]
    mean = float(np.average([found.mean_hu for found in located], weights=voxels))
    if mean < BONE_HU:
        raise StudyError(
            "mask-off-bone", f"mean HU inside the mask is {mean:.0f}, bone is over {BONE_HU:.0f}"
        )
