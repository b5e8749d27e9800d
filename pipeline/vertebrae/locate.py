"""Locate the vertebrae in a volume, from a given label mask or with a localizer network.

Both give the voxels of each level on the grid of the volume. Not here: boxes of the crops
(`pipeline.vertebrae.cropping`), plausibility of a mask's levels (`pipeline.vertebrae.mask_rules`),
and the interpretation of a network's output (`pipeline.vertebrae.anatomy`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.vertebrae.anatomy import find_vertebrae
from pipeline.vertebrae.mask_rules import check_levels
from pipeline.vertebrae.maskparts import (
    MaskPart,
    label_values,
    resample_levels,
    resample_part,
    split_mask,
)
from pipeline.vertebrae.nifti import LabelMask
from pipeline.vertebrae.onnx_network import Network
from pipeline.vertebrae.overview import overview_geometry
from presentation.setting_types import convert
from storage_schemas.cubes import shrink_cube
from storage_schemas.errors import StudyError
from storage_schemas.geometry import Box, StackGeometry
from storage_schemas.localizer_card import LOCALIZED_LEVELS
from storage_schemas.vertebrae import MASK_LABELS

BONE_HU = 100.0
"""Minimum mean HU inside a mask on vertebrae: trabecular bone of old patients has about 100 HU,
cortical bone much more, muscle 50 (sources as for the phantom)."""
MIN_SHARE_INSIDE = 0.5
"""Minimum fraction of a mask's volume that is inside the CT."""
CLEARLY_HU = 30.0
"""Minimum difference of mean HU for one of two affines to fit the CT better than the other."""
_WHOLE = 0.9
"""Fraction of a vertebra's volume in the CT below which the vertebra is truncated."""
_SHOWN = 24
_NOT_FOUND = "vertebra-not-found"

Overview = tuple[NDArray[np.int16], NDArray[np.float64]]
"""Cube and affine from `pipeline.vertebrae.overview.make_overview`."""


@dataclass(frozen=True)
class LocatedVertebra:
    """One vertebra in a volume.

    Parameters
    ----------
    level : str
        Level, one of `storage_schemas.vertebrae.LEVELS`.
    extent : Box
        Bounding box of the vertebra in the volume.
    inside : ndarray, shape of the extent, bool
        True for the voxels of the vertebra.
    mean_hu : float
        Mean HU over the voxels of the vertebra.
    score : float or None
        Mean probability of the localizer, 0 to 1; None for a given mask.
    """

    level: str
    extent: Box
    inside: NDArray[np.bool_]
    mean_hu: float
    score: float | None = None


@dataclass(frozen=True)
class Localization:
    """Vertebrae located in one study.

    Parameters
    ----------
    localizer : str
        Method with the mask convention or the digest of the network; empty if there was none.
    vertebrae : tuple of LocatedVertebra
        Located vertebrae of the requested levels.
    missing : mapping of str to (str, str)
        Outcome and reason for each requested level that was not located.
    overview_levels : ndarray, shape of the overview, uint8, or None
        Given mask on the grid of the overview, from `resample_levels`; None without a mask, and if
        a level of the mask is refused, since localizers are trained on it.
    """

    localizer: str
    vertebrae: tuple[LocatedVertebra, ...]
    missing: Mapping[str, tuple[str, str]]
    overview_levels: NDArray[np.uint8] | None = None


def find_focus(mask: LabelMask | StudyError | None) -> NDArray[np.float64] | None:
    """Return the corners of the bounding box of a mask's labels, for the choice of the series.

    Parameters
    ----------
    mask : LabelMask or StudyError or None
        Mask of the study, or the reason why it cannot be read.

    Returns
    -------
    ndarray, shape (8, 3), float64, or None
        Corners in LPS mm; None without a mask, or if the mask is empty.
    """
    if not isinstance(mask, LabelMask) or not mask.labels.any():
        return None
    ends = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(mask.labels.any(axis=others))
        ends.append((float(inside[0]), float(inside[-1])))
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    lps_from_index = np.linalg.inv(mask.index_from_lps)
    return np.asarray(corners @ lps_from_index[:3, :3].T + lps_from_index[:3, 3])


def locate_by_mask(
    hu: NDArray[np.int16],
    geometry: StackGeometry,
    overview: Overview,
    mask: LabelMask,
    convention: str,
    levels: Sequence[str],
) -> Localization:
    """Locate vertebrae from a label mask, aligned by its affine.

    Parameters
    ----------
    hu : ndarray, shape (z, y, x), int16, HU
        Canonical volume.
    geometry : StackGeometry
        Geometry of the volume.
    overview : tuple of ndarray
        Overview of the volume.
    mask : LabelMask
        Mask from `pipeline.vertebrae.nifti.read_mask`.
    convention : str
        Key of `storage_schemas.vertebrae.MASK_LABELS`.
    levels : sequence of str
        Requested levels.

    Raises
    ------
    StudyError
        ``mask-outside-volume`` or ``mask-off-bone``, with the measured figures;
        ``mask-affine-ambiguous`` where the header holds two affines and both fit;
        ``vertebra-out-of-order`` where the levels cannot be a spine's; ``vertebra-not-found`` where
        the mask holds none of the levels.
    """
    fit = _fit(hu, geometry, mask, convention, levels)
    absence = _absence(mask, convention)
    reasons = {level: (_NOT_FOUND, f"the mask does not hold {level}{absence}") for level in levels}
    reasons |= {
        part.level: (_NOT_FOUND, f"the mask puts {part.level} outside the CT")
        for part in fit.parts
        if part.level not in fit.located
    }
    reasons |= fit.missing
    accepted = [found for level, found in fit.located.items() if level not in fit.missing]
    resampled = None
    if not fit.missing:
        resampled = resample_levels(fit.mask, fit.parts, overview_geometry(overview[1]))
    return Localization(
        f"mask:{convention}", *_of_levels(levels, accepted, reasons, "the mask holds"), resampled
    )


@dataclass(frozen=True)
class _Fit:
    """A mask aligned by one of its affines, with its accepted and its rejected levels."""

    mask: LabelMask
    parts: list[MaskPart]
    located: dict[str, LocatedVertebra]
    missing: dict[str, tuple[str, str]]
    mean_hu: float


def _fit(
    hu: NDArray[np.int16],
    geometry: StackGeometry,
    mask: LabelMask,
    convention: str,
    levels: Sequence[str],
) -> _Fit:
    """Align the mask by its affine; if two affines disagree, by the one that fits the CT."""
    if mask.other_affine is None:
        return _fit_by(hu, geometry, mask, convention, levels)
    fits, errors = [], []
    for affine in mask.index_from_lps, mask.other_affine:
        try:
            moved = replace(mask, index_from_lps=affine, other_affine=None)
            fits.append(_fit_by(hu, geometry, moved, convention, levels))
        except StudyError as error:
            errors.append(error)
    if not fits:
        raise errors[0]
    best, *others = sorted(fits, key=lambda fit: -fit.mean_hu)
    if others and best.mean_hu - others[0].mean_hu < CLEARLY_HU:
        raise StudyError(
            "mask-affine-ambiguous",
            f"sform and qform disagree, and both put the mask on bone: mean HU inside it is "
            f"{best.mean_hu:.0f} and {others[0].mean_hu:.0f}, no {CLEARLY_HU:.0f} HU apart",
        )
    return best


def _fit_by(
    hu: NDArray[np.int16],
    geometry: StackGeometry,
    mask: LabelMask,
    convention: str,
    levels: Sequence[str],
) -> _Fit:
    """Align the mask by its first affine, and check all of its levels."""
    parts = split_mask(mask, convention)
    found = {part.level: _locate(hu, geometry, mask.index_from_lps, part) for part in parts}
    located = {level: vertebra for level, vertebra in found.items() if vertebra}
    wanted = [part for part in parts if part.level in levels]
    there = [located[part.level] for part in wanted if part.level in located]
    volume_mm3 = mask.voxel_mm3 * sum(np.count_nonzero(part.inside) for part in wanted)
    _check_overlap(there, geometry, volume_mm3)
    mean_hu = _check_bone(there)
    cut = {part.level: _is_cut(part, found[part.level], mask, geometry) for part in parts}
    missing = check_levels(parts, np.asarray(np.linalg.inv(mask.index_from_lps)), cut)
    for level, vertebra in located.items():
        if vertebra.mean_hu < BONE_HU:
            why = f"mean HU inside it is {vertebra.mean_hu:.0f}, bone is over {BONE_HU:.0f}"
            missing.setdefault(level, (_NOT_FOUND, why))
    return _Fit(mask, parts, located, missing, mean_hu)


def _is_cut(
    part: MaskPart, found: LocatedVertebra | None, mask: LabelMask, geometry: StackGeometry
) -> bool:
    """Whether a vertebra is truncated by the CT or by the mask, along the slices of either."""
    along = int(abs(np.linalg.inv(mask.index_from_lps)[2, :3]).argmax())
    side = part.extent[along]
    if side.start == 0 or side.stop == mask.labels.shape[along] or found is None:
        return True
    z = found.extent[0]
    seen_mm3 = np.count_nonzero(found.inside) * float(np.prod(geometry.spacing))
    given_mm3 = np.count_nonzero(part.inside) * mask.voxel_mm3
    at_end = z.start == 0 or z.stop == geometry.shape[0]
    return bool(at_end or seen_mm3 < _WHOLE * given_mm3)


def _absence(mask: LabelMask, convention: str) -> str:
    """Describe the labels of a mask, and the conventions that have them, for a message."""
    values = label_values(mask)
    if not values:
        return ": the mask is empty"
    shown = ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")
    named = MASK_LABELS[convention]
    text = f"; its labels are {shown}"
    if not set(values) & set(named):
        text += f", {convention} has {min(named)} to {max(named)}"
        if others := sorted(n for n, known in MASK_LABELS.items() if set(values) <= set(known)):
            text += f", {' and '.join(others)} has these"
    return text


def locate_by_network(
    hu: NDArray[np.int16],
    geometry: StackGeometry,
    overview: Overview,
    network: Network,
    levels: Sequence[str],
) -> Localization:
    """Locate vertebrae with a network on the overview.

    Parameters
    ----------
    hu : ndarray, shape (z, y, x), int16, HU
        Canonical volume.
    geometry : StackGeometry
        Geometry of the volume.
    overview : tuple of ndarray
        Overview of the volume.
    network : Network
        Network from `pipeline.vertebrae.onnx_network`.
    levels : sequence of str
        The levels wanted; it knows C1 to C7.

    Raises
    ------
    StudyError
        ``vertebra-not-found`` where none of the levels is found.
    """
    cube, affine = shrink_cube(*overview, network.size)
    vertebrae, missing = find_vertebrae(network.predict(cube), affine)
    index_from_lps = np.asarray(np.linalg.inv(affine))
    located = []
    for vertebra in vertebrae:
        part = vertebra.part
        found = _locate(hu, geometry, index_from_lps, part, vertebra.score)
        if found is None:
            missing[part.level] = (_NOT_FOUND, f"{part.level} lies between the slices")
        elif found.mean_hu < BONE_HU:
            why = f"mean HU inside {part.level} is {found.mean_hu:.0f}, bone is over {BONE_HU:.0f}"
            missing[part.level] = (_NOT_FOUND, why)
        else:
            located.append(found)
    for level in set(levels) - set(LOCALIZED_LEVELS):
        missing[level] = (_NOT_FOUND, f"{level}: the localizer knows C1 to C7 only")
    return Localization(network.name, *_of_levels(levels, located, missing, "the localizer finds"))


Locator = Callable[[NDArray[np.int16], StackGeometry, Overview, Sequence[str]], Localization]
"""Finds levels in a volume (z, y, x) in HU, given its geometry, its overview and the levels."""
LOCATORS: dict[str, Locator] = {}
"""Other ways of finding vertebrae, by the name that the setting ``locate_by`` takes."""


def find_locator(name: str) -> Locator:
    """Return another way of finding vertebrae.

    Raises
    ------
    UsageError
        ``config-invalid`` where `LOCATORS` has none of that name.
    """
    return LOCATORS[convert(name, str, "locate_by", LOCATORS)]


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
    """Split the requested levels into located and missing ones."""
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


def _check_bone(located: list[LocatedVertebra]) -> float:
    """Mean HU inside the requested levels; 0 if there are none."""
    if not located:
        return 0.0
    voxels = [np.count_nonzero(found.inside) for found in located]
    mean = float(np.average([found.mean_hu for found in located], weights=voxels))
    if mean < BONE_HU:
        raise StudyError(
            "mask-off-bone", f"mean HU inside the mask is {mean:.0f}, bone is over {BONE_HU:.0f}"
        )
    return mean
