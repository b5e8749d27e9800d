"""Groups of the store and their attributes: one crop is an OME-Zarr image with its mask as a label.

The attributes of each group are OME-Zarr 0.5 metadata (``ome``) and a block of this package
(``cspine``, see docs/data-format.md). Not here: the arrays (`storage_schemas.arrays`), keys and
requests (`storage_schemas.store`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from storage_schemas.arrays import AXES, create_array
from storage_schemas.canonical import canonical_json
from storage_schemas.errors import StoreError
from storage_schemas.geometry import StackGeometry
from storage_schemas.parsing.strict_json import convert, decode

SCHEMA = "cspine-crop/1"
_Row = tuple[float, float, float, float]


@dataclass(frozen=True)
class Crop:
    """One vertebra, as it is stored.

    Parameters
    ----------
    hu : ndarray, shape (z, y, x), int16, HU
        Voxels of the crop. z increases to the head, y to the back, x to the patient's left.
    mask : ndarray, shape (z, y, x), uint8, or None
        1 inside the vertebra, 0 outside; None where no mask is stored.
    geometry : StackGeometry
        Geometry of the crop, LPS, in mm.
    attributes : mapping
        The group's ``cspine`` block (see docs/data-format.md).
    """

    hu: NDArray[np.int16]
    mask: NDArray[np.uint8] | None
    geometry: StackGeometry
    attributes: Mapping[str, Any]


class CropBlock(msgspec.Struct):
    """Fields of a vertebra group's ``cspine`` block that readers need.

    Parameters
    ----------
    masked : bool
        Whether the group has a mask, ``labels/vertebra``.
    geometry : StackGeometry
        Geometry of the crop.
    """

    masked: bool
    geometry: StackGeometry


class _OverviewBlock(msgspec.Struct):
    affine: tuple[_Row, _Row, _Row, _Row]


class _Node(msgspec.Struct):
    """A ``zarr.json`` of a group or an array."""

    attributes: dict[str, Any] = msgspec.field(default_factory=dict)


def create_crop(
    path: str,
    hu: NDArray[np.int16],
    mask: NDArray[np.uint8] | None,
    geometry: StackGeometry,
    attributes: Mapping[str, Any],
) -> dict[str, bytes]:
    """Encode one vertebra: an OME-Zarr image and, where there is a mask, an OME-Zarr label.

    Parameters
    ----------
    path : str
        ``<study>/<level>``.
    hu : ndarray, shape (z, y, x), int16, HU
        Voxels of the crop, not resampled.
    mask : ndarray, shape (z, y, x), uint8, or None
        1 inside the vertebra, 0 outside.
    geometry : StackGeometry
        Geometry of the crop.
    attributes : mapping
        Further fields of the group's ``cspine`` block (see docs/data-format.md), plain JSON values.

    Returns
    -------
    dict of str to bytes
        The objects by key below ``volumes.zarr``.
    """
    block = {"schema": SCHEMA, "geometry": geometry.to_json(), **attributes}
    objects = _group(path, {"ome": _multiscales(path, geometry), "cspine": block})
    objects |= create_array(f"{path}/0", hu, {})
    if mask is not None:
        labels = f"{path}/labels"
        image = {**_multiscales(f"{labels}/vertebra", geometry), "image-label": _IMAGE_LABEL}
        objects |= _group(labels, {"ome": {"version": "0.5", "labels": ["vertebra"]}})
        objects |= _group(f"{labels}/vertebra", {"ome": image})
        objects |= create_array(f"{labels}/vertebra/0", mask, {})
    return objects


def create_group(path: str, attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """Encode a Zarr group: the object ``<path>/zarr.json``."""
    return _group(path, attributes)


def read_attributes(metadata: bytes, path: str) -> dict[str, Any]:
    """Read the attributes of a group or an array.

    Parameters
    ----------
    metadata : bytes
        Content of its ``zarr.json``.
    path : str
        Key of the object, for the message.

    Raises
    ------
    StoreError
        ``metadata-damaged`` where the bytes are no JSON object.
    """
    try:
        return decode(metadata, _Node).attributes
    except ValueError as error:
        raise StoreError("metadata-damaged", f"zarr.json: {error}", key=path) from None


def check_schema(attributes: Mapping[str, Any], expected: str, path: str) -> None:
    """Raise StoreError ``schema-unsupported`` unless the ``cspine`` block is of this schema."""
    block = attributes.get("cspine")
    found = block.get("schema") if isinstance(block, dict) else None
    if found != expected:
        raise StoreError("schema-unsupported", f"{found!r}, not {expected!r}", key=path)


def read_crop_block(attributes: Mapping[str, Any], path: str) -> CropBlock:
    """Read the ``cspine`` block of a vertebra's group.

    Parameters
    ----------
    attributes : mapping
        Attributes of the group or array, from `read_attributes`.
    path : str
        Key of the group, for the message.

    Raises
    ------
    StoreError
        ``schema-unsupported`` where another version wrote it, ``metadata-damaged`` where a field is
        missing or wrong.
    """
    check_schema(attributes, SCHEMA, path)
    try:
        return convert(attributes["cspine"], CropBlock)
    except ValueError as error:
        raise StoreError("metadata-damaged", f"its attributes: {error}", key=path) from None


def read_affine(attributes: Mapping[str, Any], path: str) -> NDArray[np.float64]:
    """Read the matrix of an overview.

    Parameters
    ----------
    attributes : mapping
        Attributes of the group or array, from `read_attributes`.
    path : str
        Key of the array, for the message.

    Returns
    -------
    ndarray, shape (4, 4), float64
        Matrix from homogeneous (z, y, x) indices to LPS (x, y, z) in mm.

    Raises
    ------
    StoreError
        ``metadata-damaged`` where there is none.
    """
    try:
        return np.array(convert(attributes.get("cspine"), _OverviewBlock).affine)
    except ValueError as error:
        raise StoreError("metadata-damaged", f"no affine: {error}", key=path) from None


def _multiscales(name: str, geometry: StackGeometry) -> dict[str, Any]:
    axes = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in AXES]
    level = {"path": "0", "coordinateTransformations": geometry.ome_transforms()}
    return {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": [level]}]}


_IMAGE_LABEL = {
    "colors": [{"label-value": 1, "rgba": [230, 159, 0, 128]}],
    "source": {"image": "../../"},
}


def _group(path: str, attributes: Mapping[str, Any]) -> dict[str, bytes]:
    document = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    return {f"{path}/zarr.json".lstrip("/"): canonical_json(document)}
