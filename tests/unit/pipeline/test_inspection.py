import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipeline.inspection import Inspection, inspect_studies
from pipeline.report.inspection_tables import render
from pipeline.source.listing import HEAD_BYTES
from storage_schemas.errors import RunError
from tests import made_dicom

WORDS = np.zeros((4, 300, 200), np.uint16)


def look(objects: dict[str, bytes], study: str = "1.2.3.4") -> tuple[Inspection, list[int]]:
    asked = []

    def head(key: str, count: int) -> bytes:
        asked.append(count)
        return objects[key][:count]

    listed = [(key, len(data)) for key, data in objects.items()]
    return inspect_studies([(study, listed)], head), asked


def stack(**fields: Any) -> dict[str, bytes]:
    return dict(made_dicom.name_objects(made_dicom.make_stack(WORDS, **fields)))


def test_a_readable_study_is_described_in_numbers() -> None:
    inspection, asked = look(stack())
    (study,) = inspection.studies
    (series,) = study.series
    assert (study.outcome, study.objects, study.volume_bytes) == ("readable", 4, WORDS.nbytes)
    assert (series.chosen, series.slices, series.geometry) == (True, 4, ("regular",))
    assert (series.spacing, series.gaps) == ((1, 0.5, 0.5), (1, 1, 1))
    assert series.syntaxes == (made_dicom.EXPLICIT,)
    assert not study.problems
    assert max(asked) <= HEAD_BYTES


def test_only_the_heads_of_objects_are_read_unless_a_header_is_longer() -> None:
    words = np.zeros((300, 300), np.uint16)
    data = made_dicom.make_dataset(words)
    data.add_new(0x00090010, "LO", "creator")
    data.add_new(0x00091010, "OB", bytes(HEAD_BYTES))
    data.PixelData, data["PixelData"].VR = words.tobytes(), "OW"
    long = {"a": made_dicom.write(data, made_dicom.EXPLICIT)}
    inspection, asked = look(long)
    assert len(asked) == 2
    assert inspection.studies[0].series[0].slices == 1


def test_problems_are_gathered_by_kind_with_the_first_of_each() -> None:
    objects = stack()
    objects["001.dcm"] = objects["001.dcm"][:-1000]
    objects |= {"a.dcm": b"text", "void": b"", "notes.txt": b"text"}
    objects["half"] = made_dicom.make_object(
        WORDS[0], ImagePositionPatient=[0, 0, 9], RescaleSlope=0.5
    )
    whole = made_dicom.make_object(WORDS[0], ImagePositionPatient=[0, 0, 8])
    length = WORDS[0].nbytes.to_bytes(4, "little")
    objects["short"] = whole.replace(b"OW\0\0" + length, b"OW\0\0" + bytes(4))
    (study,) = look(objects)[0].studies
    found = {p.kind: (p.count, p.key) for p in study.problems}
    assert found == {
        "length-mismatch": (1, "short"),
        "not-dicom": (2, "a.dcm"),
        "rescale-invalid": (1, "half"),
        "truncated": (1, "001.dcm"),
    }


@pytest.mark.parametrize(
    ("fields", "geometry", "axial"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer", True),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "not axial", False),
    ],
)
def test_a_study_without_a_stack_is_described_too(
    fields: dict[str, Any], geometry: str, axial: bool
) -> None:
    inspection, _ = look(stack(**fields))
    (study,) = inspection.studies
    assert study.outcome == "no-axial-stack"
    assert (study.series[0].axial, study.series[0].geometry) == (axial, ())
    assert geometry in printed(inspection)


def test_an_inspection_is_plain_json_without_the_patient() -> None:
    text = json.dumps(look(stack())[0].to_json())
    assert json.loads(text)["readable"] == 1
    assert "secret" not in text


def printed(inspection: Inspection) -> str:
    console = Console(file=io.StringIO(), width=200)
    render(inspection, console)
    return console.file.getvalue()  # type: ignore[attr-defined] # it is the StringIO


def test_an_inspection_is_printed_for_people() -> None:
    objects = stack() | {"[red]text": b"\1\2\3"}
    text = printed(look(objects)[0])
    assert "regular" in text
    assert "not-dicom x 1, first [red]text" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("extra", "study", "outcome"),
    [
        ({"text.dcm": b"text"}, "1.2.3.4", "too-many-bad-slices"),
        ({"other": made_dicom.make_object(WORDS[0] + 1)}, "1.2.3.4", "too-many-bad-slices"),
        ({"text": b"text"}, "1.2.3.4", "readable"),
        ({"again": made_dicom.make_object(WORDS[0])}, "1.2.3.4", "readable"),
        ({}, "1.2.3", "study-mixed"),
        ({}, "folder", "study-key-invalid"),
        ({}, "1.2.3.4", "readable"),
    ],
)
def test_a_study_that_a_run_would_refuse_is_not_called_readable(
    extra: dict[str, bytes], study: str, outcome: str
) -> None:
    (view,) = look(stack() | extra, study)[0].studies
    assert view.outcome == outcome


def test_slices_at_one_position_are_foreseen_as_duplicates() -> None:
    objects = stack()
    objects["again"] = made_dicom.make_object(
        WORDS[3], ImagePositionPatient=[0, 0, 3], InstanceNumber=4, BitsStored=12
    )
    (study,) = look(objects)[0].studies
    assert [(p.kind, p.count) for p in study.problems] == [("duplicate-slice", 1)]
    objects["003.dcm"] = objects["003.dcm"][:-1000]
    (study,) = look(objects)[0].studies
    assert [(p.kind, p.count) for p in study.problems] == [("truncated", 1)]


def test_an_object_that_cannot_be_read_costs_its_study_alone() -> None:
    objects = stack()

    def head(key: str, count: int) -> bytes:
        if key == "gone":
            raise RunError("object-unreadable", "No such file", key=key)
        return objects[key][:count]

    listed = [(key, len(data)) for key, data in objects.items()]
    studies = [("1.2.9", [*listed, ("gone", 0)]), ("1.2.3.4", listed)]
    bad, good = inspect_studies(studies, head).studies
    assert (bad.outcome, bad.reason) == ("object-unreadable", "gone: No such file")
    assert good.outcome == "readable"
