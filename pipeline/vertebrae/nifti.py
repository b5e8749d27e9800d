"""Read label masks from NIfTI with size limits, and resample them on the grid of a CT.

NIfTI coordinates are RAS, x to the right and y to the front; DICOM's are LPS; both are in mm. Masks
are aligned by the affines of mask and CT alone, never by flipping axes; a mask that is then not on
bone is refused by `pipeline.vertebrae.locate`.
"""

from dataclasses import dataclass
from typing import Any

import imagecodecs
import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from storage_schemas.errors import StudyError
from storage_schemas.geometry import Box, StackGeometry

MAX_BYTES = 4 << 30
"""Size limit of a mask: 1024 slices of 1024 x 1024 voxels of 32 bits."""
_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MAX_RATIO = 1032
"""Maximum compression ratio of deflate."""
_VOXEL_MM = (0.01, 100.0)
"""Allowed range of the voxel size in mm."""
_FARTHEST_MM = 1e5
"""Maximum coordinate of the origin in mm."""
_FLAT = 1e-3
"""Minimum volume spanned by the unit vectors of the axes; it is 1 for orthogonal axes."""
_NEGLIGIBLE = 1e-3
"""Contribution of an axis to an index, in voxels, below which the axis is ignored."""

_UNREADABLE = (
    ValueError,
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
    """

    labels: NDArray[np.uint8]
    index_from_lps: NDArray[np.float64]

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
    """Read a NIfTI label image, plain or gzipped.

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
        stored = _inflate(data)
        header = _header(stored)
        shape = tuple(int(n) for n in header.get_data_shape())
        if len(shape) < 3 or set(shape[3:]) - {1} or np.prod(shape, dtype=object) > MAX_BYTES // 4:
            raise ValueError(f"shape {shape}")
        if header["sform_code"] == 0 and header["qform_code"] == 0:
            raise ValueError("no affine (sform and qform codes are 0)")
        affine = np.asarray(header.get_best_affine(), np.float64)
        # NaN fails this test too.
        if not (abs(affine[:3, 3]) < _FARTHEST_MM).all():
            raise ValueError(f"the affine puts it at {affine[:3, 3]} mm")
        sides = np.linalg.norm(affine[:3, :3], axis=0)
        if not ((sides > _VOXEL_MM[0]) & (sides < _VOXEL_MM[1])).all():
            raise ValueError(f"the affine has voxels of {sides} mm")
        if abs(np.linalg.det(affine[:3, :3] / sides)) < _FLAT:
            raise ValueError("the affine has no inverse: its axes lie in one plane")
        index_from_lps = np.asarray(np.linalg.inv(affine) @ _RAS_FROM_LPS, np.float64)
        labels = _labels(stored, header, shape[:3])
    except _UNREADABLE as error:
        raise StudyError("mask-unreadable", str(error), key=key) from None
    return LabelMask(labels, index_from_lps)


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


def _inflate(data: bytes) -> bytes | memoryview:
    """Decompress gzip data with a size limit; other data are returned unchanged."""
    if data[:2] != b"\x1f\x8b":
        return data
    # ISIZE, the last field of the stream (RFC 1952, 2.3.1), bounded by what deflate can reach.
    size = min(int.from_bytes(data[-4:], "little"), MAX_BYTES, _MAX_RATIO * len(data))
    inflated = np.empty(size, np.uint8)
    try:
        # libdeflate needs a third of the time of zlib, and no copy.
        found = len(imagecodecs.gzip_decode(data, out=inflated.data))
    except imagecodecs.GzipError:
        raise ValueError("the gzip stream is cut or damaged") from None
    if found != size:
        raise ValueError(f"the gzip stream holds {found} bytes, not the {size} that it says")
    return inflated.data


def _header(stored: bytes | memoryview) -> Any:
    """Read a header of NIfTI-1 or NIfTI-2, which differ in the size field, of any byte order."""
    newer = bytes(stored[:4]) in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    form = nib.Nifti2Header if newer else nib.Nifti1Header
    return form(bytes(stored[: form.sizeof_hdr]))


def _labels(stored: bytes | memoryview, header: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Integer labels 0 to 255 as uint8; a view of the stored bytes where possible."""
    kind, start = header.get_data_dtype(), header.get_data_offset()
    if kind.kind not in "iuf":
        raise ValueError(f"the values are {kind}, not numbers")
    values = np.frombuffer(stored, kind, int(np.prod(shape)), start).reshape(shape, order="F")
    slope, inter = header.get_slope_inter()
    plain = slope in (None, 1) and inter in (None, 0)
    if plain and kind == np.uint8:
        return np.asarray(values, np.uint8)
    labels = np.empty(shape, np.uint8, order="F")
    # Slice by slice to save memory: masks of float64 are common.
    for k in range(shape[2]):
        slab = values[..., k] if plain else values[..., k] * slope + inter
        with np.errstate(invalid="ignore"):
            np.copyto(labels[..., k], slab, casting="unsafe")
        if not np.array_equal(labels[..., k], slab):
            raise ValueError("the values are not whole labels from 0 to 255")
    return labels
