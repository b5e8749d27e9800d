"""Read label masks from NIfTI with size limits, and resample them on the grid of a CT.

NIfTI coordinates are RAS, x to the right and y to the front; DICOM's are LPS; both are in mm. Masks
are aligned by the affines of mask and CT alone, never by flipping axes. A header may have two
affines (sform and qform) that disagree; both are kept, and `pipeline.vertebrae.locate` uses the one
that puts the mask on bone, or refuses the mask. Decompression is in `pipeline.vertebrae.gzipped`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from pipeline.vertebrae.gzipped import read_all, read_start
from storage_schemas.errors import StudyError
from storage_schemas.geometry import Box, StackGeometry

MAX_BYTES = 4 << 30
"""Maximum size of a mask, decompressed: 1024 slices of 1024 x 1024 voxels of 32 bits."""
MAX_DISAGREEMENT = 0.5
"""Maximum distance in voxels, over the labelled part, at which sform and qform are one affine."""
_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_VOXEL_MM = (0.01, 100.0)
"""Allowed range of the voxel size in mm."""
_FARTHEST_MM = 1e5
"""Maximum coordinate of the origin in mm."""
_FLAT = 1e-3
"""Minimum volume spanned by the unit vectors of the axes; it is 1 for orthogonal axes."""
_NEGLIGIBLE = 1e-3
"""Contribution of an axis to an index, in voxels, below which the axis is ignored."""
_ROUNDING = 1e-3
"""Maximum distance of a scaled value from a whole label: scl_slope is a float32."""

_FORMS: Mapping[bytes, tuple[Any, str]] = {
    b"\x5c\1\0\0": (nib.Nifti1Header, "<"),
    b"\0\0\1\x5c": (nib.Nifti1Header, ">"),
    b"\x1c\2\0\0": (nib.Nifti2Header, "<"),
    b"\0\0\2\x1c": (nib.Nifti2Header, ">"),
}
_UNREADABLE = (
    ValueError,
    OverflowError,
    OSError,
    EOFError,
    np.linalg.LinAlgError,
    HeaderDataError,
    WrapStructError,
)


@dataclass(frozen=True)
class LabelMask:
    """A label image in patient coordinates.

    Parameters
    ----------
    labels : ndarray, shape (i, j, k), uint8
        Labels; 0 is background, and `storage_schemas.vertebrae.MASK_LABELS` defines the others.
    index_from_lps : ndarray, shape (4, 4), float64
        Matrix from homogeneous LPS points in mm to (i, j, k).
    other_affine : ndarray, shape (4, 4), float64, or None
        Matrix of the header's other affine (qform), where that puts labelled voxels more
        than `MAX_DISAGREEMENT` voxels elsewhere.
    """

    labels: NDArray[np.uint8]
    index_from_lps: NDArray[np.float64]
    other_affine: NDArray[np.float64] | None = None

    @property
    def voxel_mm(self) -> NDArray[np.float64]:
        """Voxel size along i, j and k in mm."""
        lps_from_index = np.linalg.inv(self.index_from_lps)
        return np.asarray(np.linalg.norm(lps_from_index[:3, :3], axis=0))

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel in mm3."""
        return 1.0 / abs(float(np.linalg.det(self.index_from_lps[:3, :3])))


def read_mask(data: bytes, key: str) -> LabelMask:
    """Read a NIfTI label image, plain or gzipped (bgzip's several members included).

    Parameters
    ----------
    data : bytes
        Content of the file.
    key : str
        Name of the file, for error messages.

    Raises
    ------
    StudyError
        ``mask-unreadable`` where the file is not a three-dimensional image of integer labels from 0
        to 255 with an affine, or is larger than `MAX_BYTES`.
    """
    try:
        header = _header(read_start(data))
        shape = _shape(header)
        kind, start = _kind(header), _start(header)
        size = start + int(np.prod(shape, dtype=object)) * kind.itemsize
        if size > MAX_BYTES:
            raise ValueError(f"shape {shape} of {kind}: {size} bytes, at most {MAX_BYTES} are read")
        affines = _affines(header)
        stored = read_all(data, size)
        if len(stored) < size:
            raise ValueError(f"the file holds {len(stored)} bytes, its header states {size}")
        _check_extensions(stored, header, start)
        labels = _labels(stored, header, kind, start, shape)
    except _UNREADABLE as error:
        raise StudyError("mask-unreadable", str(error), key=key) from None
    first, *others = [np.asarray(np.linalg.inv(a) @ _RAS_FROM_LPS, np.float64) for a in affines]
    return LabelMask(labels, first, *(other for other in others if _disagree(first, other, labels)))


def sample_mask(
    index_from_lps: NDArray[np.float64],
    value: NDArray[np.bool_],
    corner: tuple[int, int, int],
    geometry: StackGeometry,
    box: Box,
) -> NDArray[np.bool_]:
    """Resample a part of a mask on a part of the CT's grid with nearest neighbour.

    Parameters
    ----------
    index_from_lps : ndarray, shape (4, 4), float64
        Matrix from LPS mm to indices of the mask, as in `LabelMask`.
    value : ndarray, shape (i, j, k), bool
        Values of the part of the mask; voxels outside the part count as False.
    corner : tuple of int
        Index of the first voxel of the part in the mask.
    geometry : StackGeometry
        Geometry of the volume.
    box : Box
        Part of the volume.

    Returns
    -------
    ndarray, shape of the box, bool
        Values of the mask at the voxels of the box.
    """
    z, y, x = (np.arange(side.start, side.stop) for side in box)
    origins = geometry.to_lps(np.stack([z, 0 * z, 0 * z], axis=-1))
    matrix = index_from_lps
    slices = origins @ matrix[:3, :3].T + matrix[:3, 3] - corner
    rows = matrix[:3, :3] @ np.multiply(geometry.column_direction, geometry.pixel_spacing[0])
    columns = matrix[:3, :3] @ np.multiply(geometry.row_direction, geometry.pixel_spacing[1])
    indices, varying = [], []
    for axis in range(3):
        terms = [
            slices[:, axis].reshape(-1, 1, 1),
            (y * rows[axis]).reshape(1, -1, 1),
            (x * columns[axis]).reshape(1, 1, -1),
        ]
        sides = [side for side, term in enumerate(terms) if np.ptp(term) > _NEGLIGIBLE]
        rest = sum(float(term.mean()) for side, term in enumerate(terms) if side not in sides)
        index = sum((terms[side] for side in sides), start=np.full((1, 1, 1), rest))
        indices.append(np.rint(index).astype(np.intp))
        varying.append(sides)
    shape = (len(z), len(y), len(x))
    if sorted(varying) == [[0], [1], [2]]:
        # Parallel axes, by far the most common case, need no index per voxel.
        axes = [sides[0] for sides in varying]
        return _sample_along_axes(value, [index.ravel() for index in indices], axes)
    inside = np.ones((1, 1, 1), bool)
    for index, length in zip(indices, value.shape, strict=True):
        inside = inside & (index >= 0) & (index < length)
        index.clip(0, length - 1, out=index)
    return np.broadcast_to(value[tuple(indices)] & inside, shape)


def _sample_along_axes(
    value: NDArray[np.bool_], indices: list[NDArray[np.intp]], axes: list[int]
) -> NDArray[np.bool_]:
    """Values at an index along each axis, False outside; axis n becomes axis ``axes[n]``."""
    found, held = value, [slice(0)] * 3
    for axis, (index, target) in enumerate(zip(indices, axes, strict=True)):
        # Indices are monotonic, so those inside the mask are contiguous.
        hits = np.flatnonzero((index >= 0) & (index < value.shape[axis]))
        held[target] = slice(hits[0], hits[-1] + 1) if hits.size else slice(0)
        found = found[(slice(None),) * axis + (_as_slice(index[held[target]]),)]
    resampled = np.zeros([indices[axes.index(side)].size for side in range(3)], bool)
    resampled[tuple(held)] = found.transpose([axes.index(side) for side in range(3)])
    return resampled


def _as_slice(index: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """Convert an index with steps of 1 or -1 to a slice, which avoids a copy."""
    steps = np.diff(index)
    step = int(steps[0]) if steps.size else 1
    if abs(step) != 1 or (steps != step).any() or not index.size:
        return index
    stop = int(index[-1]) + step
    return slice(int(index[0]), stop if stop >= 0 else None, step)


def box_around(
    index_from_lps: NDArray[np.float64], extent: Box, geometry: StackGeometry
) -> Box | None:
    """Return a box of the volume that contains a box of the mask; None where they are disjoint.

    Parameters
    ----------
    index_from_lps : ndarray, shape (4, 4), float64
        Matrix from LPS mm to indices of the mask, as in `LabelMask`.
    extent : Box
        Box of the mask, (i, j, k).
    geometry : StackGeometry
        Geometry of the volume.
    """
    corners = np.stack(
        np.meshgrid(*[(side.start - 0.5, side.stop - 0.5) for side in extent], indexing="ij"),
        axis=-1,
    ).reshape(-1, 3)
    lps = np.linalg.inv(index_from_lps)
    indices = geometry.to_index(corners @ lps[:3, :3].T + lps[:3, 3])
    low = np.floor(indices.min(0)).astype(int)
    high = np.ceil(indices.max(0)).astype(int) + 1
    sides = [
        slice(max(0, int(a)), min(n, int(b)))
        for a, b, n in zip(low, high, geometry.shape, strict=True)
    ]
    if any(side.start >= side.stop for side in sides):
        return None
    return sides[0], sides[1], sides[2]


def _header(stored: bytes) -> Any:
    """Read a header of NIfTI-1 or NIfTI-2, which differ by its size, in either byte order."""
    form, order = _FORMS.get(stored[:4], (None, ""))
    if form is None or len(stored) < form.sizeof_hdr:
        raise ValueError("it is no NIfTI file, which begins with its header's size, 348 or 540")
    # Unchecked: nibabel's checks log, and change some fields.
    header = form(stored[: form.sizeof_hdr], endianness=order, check=False)
    magic = header["magic"].item()
    if magic == header.pair_magic:
        raise ValueError("the header of a .hdr/.img pair; save the pair as one .nii file")
    if magic != header.single_magic:
        raise ValueError(f"its magic is {magic!r}, a NIfTI file's is {header.single_magic!r}")
    return header


def _shape(header: Any) -> tuple[int, int, int]:
    """The sides of a volume; further dimensions must be of length 1."""
    count, *sides = (int(n) for n in header["dim"])
    if not 3 <= count <= 7:
        raise ValueError(f"dim[0] is {count}, a mask has 3 dimensions")
    sides = sides[:count]
    if min(sides) < 1 or max(sides[3:], default=1) > 1:
        raise ValueError(f"dim is {sides}, a mask has three sides of 1 or more")
    return sides[0], sides[1], sides[2]


def _kind(header: Any) -> np.dtype[Any]:
    kind: np.dtype[Any] = header.get_data_dtype()
    if kind.kind not in "iuf":
        raise ValueError(f"the values are {kind}, not numbers")
    return kind


def _start(header: Any) -> int:
    """Where the voxels begin, after the header and its extensions."""
    offset, least = float(header["vox_offset"]), header.single_vox_offset
    if not least <= offset <= MAX_BYTES or offset % 1:
        raise ValueError(f"vox_offset is {offset:g}, voxels begin at byte {least} or later")
    return int(offset)


def _check_extensions(stored: bytes | memoryview, header: Any, start: int) -> None:
    """Refuse voxels that would begin inside a header extension (NIfTI-1 standard, extensions)."""
    at: int = header.sizeof_hdr + 4
    order: Literal["little", "big"] = "little" if header.endianness == "<" else "big"
    if not bytes(stored[at - 4 : at - 3]).strip(b"\0"):
        return
    size = int.from_bytes(stored[at : at + 4], order)
    # Sizes are multiples of 16; anything else there is a voxel, and the flag is stray.
    if size and size % 16 == 0 and start < at + size <= len(stored):
        raise ValueError(
            f"vox_offset is {start}, inside a header extension that ends at {at + size}"
        )


def _affines(header: Any) -> list[NDArray[np.float64]]:
    """The header's affines to RAS mm that can be used: sform, then qform.

    Codes are those of the NIfTI-1 standard, methods 2 and 3: 0 means that there is none.
    """
    found, faults = [], []
    for name, read in ("sform", _sform), ("qform", _qform):
        if int(header[f"{name}_code"]) <= 0:
            continue
        try:
            found.append(_check_affine(read(header)))
        except (ValueError, HeaderDataError, np.linalg.LinAlgError) as error:
            faults.append(f"{name}: {error}")
    if not found:
        raise ValueError("; ".join(faults) or "no affine (sform and qform codes are 0)")
    return found


def _sform(header: Any) -> NDArray[np.float64]:
    return np.asarray(header.get_sform(), np.float64)


def _qform(header: Any) -> NDArray[np.float64]:
    """The affine of the quaternion; pixdim[0] below 0 turns the third axis, 0 stands for 1."""
    if not (header["pixdim"][1:4] > 0).all():
        raise ValueError(f"pixdim is {header['pixdim'][1:4]}, voxels have sizes above 0 mm")
    plain = header.copy()
    plain["pixdim"][0] = -1.0 if header["pixdim"][0] < 0 else 1.0
    return np.asarray(plain.get_qform(), np.float64)


def _check_affine(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine unchanged, where it can be inverted and has sizes and places of a scan."""
    # Written so that NaN fails too.
    if not (abs(affine[:3, 3]) < _FARTHEST_MM).all():
        raise ValueError(f"the affine puts it at {affine[:3, 3]} mm")
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((sides > _VOXEL_MM[0]) & (sides < _VOXEL_MM[1])).all():
        raise ValueError(f"the affine has voxels of {sides} mm")
    if abs(np.linalg.det(affine[:3, :3] / sides)) < _FLAT:
        raise ValueError("the affine has no inverse: its axes lie in one plane")
    return affine


def _disagree(
    first: NDArray[np.float64], other: NDArray[np.float64], labels: NDArray[np.uint8]
) -> bool:
    """Whether two affines put a labelled voxel more than half a voxel apart."""
    sides = [np.flatnonzero(labels.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if not all(side.size for side in sides):
        return False
    corners = np.stack(np.meshgrid(*[side[[0, -1]] for side in sides]), axis=-1).reshape(-1, 3)
    moved = other @ np.linalg.inv(first)
    apart = corners @ moved[:3, :3].T + moved[:3, 3] - corners
    return bool(abs(apart).max() > MAX_DISAGREEMENT)


def _labels(
    stored: bytes | memoryview,
    header: Any,
    kind: np.dtype[Any],
    start: int,
    shape: tuple[int, int, int],
) -> NDArray[np.uint8]:
    """Whole labels 0 to 255 as uint8; the stored bytes themselves where these are."""
    values = np.frombuffer(stored, kind, int(np.prod(shape)), start).reshape(shape, order="F")
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isinf(slope) or (slope and not np.isnan(slope) and not np.isfinite(inter)):
        raise ValueError(f"scl_slope is {slope:g} and scl_inter {inter:g}, not finite")
    # A slope of 0 or NaN means that the values are not scaled (NIfTI-1 standard, data scaling).
    plain = slope == 0 or np.isnan(slope) or (slope, inter) == (1, 0)
    if plain and kind == np.uint8:
        return np.asarray(values, np.uint8)
    labels = np.empty(shape, np.uint8, order="F")
    # Slice by slice to save memory: masks of float64 are common.
    for k in range(shape[2]):
        with np.errstate(invalid="ignore", over="ignore"):
            slab = values[..., k] if plain else _scale(values[..., k], slope, inter)
            np.copyto(labels[..., k], slab, casting="unsafe")
        if not np.array_equal(labels[..., k], slab):
            raise ValueError("the values are not whole labels from 0 to 255")
    return labels


def _scale(values: NDArray[Any], slope: float, inter: float) -> NDArray[np.float64]:
    """Scaled values, those near a whole number made whole: the slope is rounded to float32."""
    scaled = values * slope + inter
    whole = np.rint(scaled)
    return np.where(abs(scaled - whole) <= _ROUNDING, whole, scaled)
