import numpy as np
import pytest
from ome_zarr_models.v05 import Image
from ome_zarr_models.v05.image_label import ImageLabel

from storage_schemas import crops
from storage_schemas.errors import StoreError
from storage_schemas.geometry import StackGeometry
from tests.unit.storage_schemas.test_arrays import PATH, opened_by_zarr, voxels


@pytest.mark.parametrize("value", [b"3", b"[]", b"NaN", b"1e400", b'{"a": NaN}', b'{"a": 1e400}'])
def test_attributes_that_are_no_json_object_are_named_damage(value: bytes) -> None:
    with pytest.raises(StoreError, match="metadata-damaged"):
        crops.read_attributes(b'{"attributes": ' + value + b"}", PATH)


GEOMETRY = StackGeometry((1, 4, 5), ((0.0, 0.0, 1.0),), (1.0, 0, 0), (0, 1.0, 0), (0.5, 0.5))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"schema": "cspine-crop/9"}, "schema-unsupported"),
        ({"schema": None}, "schema-unsupported"),
        ({"masked": None}, "metadata-damaged"),
        ({"masked": 1}, "metadata-damaged"),
        ({"geometry": None}, "metadata-damaged"),
        ({"geometry": GEOMETRY.to_json() | {"shape": [2, 4, 5]}}, "metadata-damaged"),
        ({"geometry": GEOMETRY.to_json() | {"positions": [[0, 0]]}}, "metadata-damaged"),
    ],
)
def test_a_crops_attributes_are_read_strictly(change: dict[str, object], kind: str) -> None:
    block = {"schema": crops.SCHEMA, "masked": True, "geometry": GEOMETRY.to_json()}
    assert crops.read_crop_block({"cspine": block}, PATH).geometry == GEOMETRY
    with pytest.raises(StoreError) as caught:
        crops.read_crop_block({"cspine": block | change}, PATH)
    assert (caught.value.kind, caught.value.key) == (kind, PATH)


@pytest.mark.parametrize("block", [None, 3, [], "cspine"])
def test_an_attribute_block_that_is_no_object_is_of_no_schema(block: object) -> None:
    with pytest.raises(StoreError, match="schema-unsupported"):
        crops.read_crop_block({"cspine": block}, PATH)
    with pytest.raises(StoreError, match="metadata-damaged"):
        crops.read_affine({"cspine": block}, PATH)


@pytest.mark.parametrize("affine", [None, [[1] * 4] * 3, [[1] * 3] * 4, [["1"] * 4] * 4, 3])
def test_an_affine_that_is_no_matrix_is_named_damage(affine: object) -> None:
    with pytest.raises(StoreError, match="metadata-damaged"):
        crops.read_affine({"cspine": {"affine": affine}}, PATH)


def test_a_crop_is_a_valid_ome_zarr_image_with_a_label() -> None:
    geometry = StackGeometry(
        shape=(3, 4, 5),
        positions=((-10.0, 5.0, 7.0), (-10.0, 5.0, 9.5), (-10.0, 5.0, 12.0)),
        row_direction=(1.0, 0.0, 0.0),
        column_direction=(0.0, 1.0, 0.0),
        pixel_spacing=(0.5, 0.25),
    )
    objects = crops.create_crop(
        "1.2/C1", voxels((3, 4, 5)), np.ones((3, 4, 5), np.uint8), geometry, {"masked": True}
    )
    image = Image.from_zarr(opened_by_zarr(objects, "1.2/C1"))
    (dataset,) = image.attributes.ome.multiscales[0].datasets
    scale, translation = dataset.coordinateTransformations
    assert scale.scale == [2.5, 0.5, 0.25]
    assert translation.translation == [7.0, 5.0, -10.0]
    label = ImageLabel.from_zarr(opened_by_zarr(objects, "1.2/C1/labels/vertebra"))
    assert label.attributes.ome.multiscales[0].datasets[0].path == "0"
    attributes = crops.read_attributes(objects["1.2/C1/zarr.json"], "1.2/C1")
    assert StackGeometry.from_json(attributes["cspine"]["geometry"]) == geometry
