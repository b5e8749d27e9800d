"""What `StackGeometry.from_json` takes from a document that anyone may have written."""

from typing import Any

import pytest

from storage_schemas.geometry import StackGeometry

GEOMETRY = StackGeometry(
    (2, 3, 4), ((0.0, 0.5, 1.0), (0.0, 0.5, 2.0)), (1.0, 0, 0), (0, 1.0, 0), (0.5, 0.25)
)


def nested(depth: int) -> Any:
    document: Any = 1
    for _ in range(depth):
        document = [document]
    return document


def test_a_geometry_reads_back_exactly() -> None:
    assert StackGeometry.from_json(GEOMETRY.to_json()) == GEOMETRY


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shape", [2, 3]),
        ("shape", [2, 3, 0]),
        ("shape", [2, 3, -4]),
        ("shape", [2, 3, 4.0]),
        ("shape", [2, 3, "4"]),
        ("shape", [2, 3, True]),
        ("shape", [2, 3, 10**30]),
        ("shape", [9, 3, 4]),
        ("shape", None),
        ("positions", [[0, 0, 0]]),
        ("positions", [[0, 0], [0, 0]]),
        ("positions", [[0, 0, "1"], [0, 0, 1]]),
        ("positions", [[0, 0, 10**400], [0, 0, 1]]),
        ("positions", 3),
        ("positions", nested(900)),
        ("row_direction", [1, 0]),
        ("column_direction", {}),
        ("pixel_spacing", [0, 1]),
        ("pixel_spacing", [float("nan"), 1]),
        ("classes", ["bent"]),
        ("classes", "regular"),
    ],
)
def test_anything_else_is_a_value_error(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        StackGeometry.from_json(GEOMETRY.to_json() | {name: value})


@pytest.mark.parametrize("document", [None, [], 3, "x", {}])
def test_a_document_of_another_kind_is_a_value_error(document: Any) -> None:
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        StackGeometry.from_json(document)
