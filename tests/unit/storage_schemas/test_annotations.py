import json
from pathlib import Path

import pytest

from storage_schemas.annotations import (
    FractureBox,
    check_studies,
    load_targets,
    read_boxes,
    read_labels,
    read_row_ids,
)
from storage_schemas.errors import UsageError
from storage_schemas.targets import COMPETITION, Targets

TRAIN = "StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7\n"


def csv(tmp_path: Path, text: str) -> str:
    path = tmp_path / "table.csv"
    path.write_text(text)
    return str(path)


def test_labels_are_read_by_study_and_column(tmp_path: Path) -> None:
    text = TRAIN + "1.2,1,0,1,0,0,0,0,0\n1.3,0,0,0,0,0,0,0,0\n"
    labels = read_labels(csv(tmp_path, text), COMPETITION)
    assert labels["1.2"]["C2"] == 1
    assert list(labels["1.3"].values()) == [0] * 8


def test_a_study_key_stays_text_even_where_it_looks_like_a_number(tmp_path: Path) -> None:
    path = csv(tmp_path, TRAIN + "1.20,0,0,0,0,0,0,0,0\n")
    assert list(read_labels(path, COMPETITION)) == ["1.20"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "StudyInstanceUID,C1\n1.2,0\n",
        TRAIN + "1.2,1,0,1,0,0,0,0,2\n",
        TRAIN + "1.2,1,0,1,0,0,0,0,\n",
        TRAIN + "1.2,1,0,1,0,0,0,0,yes\n",
        TRAIN + "1.2,1,0,1,0,0,0,0\n",
        TRAIN + "1.2,0,0,0,0,0,0,0,0\n" * 2,
    ],
)
def test_a_bad_label_table_is_one_clear_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_labels(csv(tmp_path, text), COMPETITION)
    assert caught.value.kind == "csv-invalid"
    assert "\n" not in str(caught.value)


def test_boxes_keep_their_slice_numbers(tmp_path: Path) -> None:
    text = "StudyInstanceUID,x,y,width,height,slice_number\n1.2,219.27,222.44,59.1,36.9,133\n"
    boxes = read_boxes(csv(tmp_path, text))
    assert boxes == {"1.2": [FractureBox(219.27, 222.44, 59.1, 36.9, 133)]}


@pytest.mark.parametrize(
    "row",
    ["1.2,1,1,0,5,7", "1.2,1,1,5,5,7.5", "1.2,1,1,5,5,", "1.2,1,1,nan,5,7", "1.2,inf,1,5,5,7"],
)
def test_a_bad_box_is_refused(tmp_path: Path, row: str) -> None:
    text = f"StudyInstanceUID,x,y,width,height,slice_number\n{row}\n"
    with pytest.raises(UsageError, match="csv-invalid"):
        read_boxes(csv(tmp_path, text))


def test_row_ids_name_a_study_and_a_target(tmp_path: Path) -> None:
    path = csv(tmp_path, "row_id,fractured\n1.2_C1,0.5\n1.2_patient_overall,0.5\n")
    rows = read_row_ids(path, COMPETITION)
    assert rows == [("1.2_C1", "1.2", "C1"), ("1.2_patient_overall", "1.2", "patient_overall")]


def test_a_row_id_without_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names no target"):
        read_row_ids(csv(tmp_path, "row_id\n1.2_C9\n"), COMPETITION)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="source-not-found"):
        read_labels(str(tmp_path / "none.csv"), COMPETITION)


def test_annotations_of_unknown_studies_are_refused() -> None:
    check_studies(["1.2"], ["1.2", "1.3"], "train.csv")
    with pytest.raises(UsageError, match=r"1 of 2 studies are not there, first 9\.9"):
        check_studies(["1.2", "9.9"], ["1.2"], "train.csv")


LUMBAR = Targets.of(("L1", "L2"), patient="any_fracture")


def test_labels_and_row_ids_are_those_of_the_targets(tmp_path: Path) -> None:
    path = csv(tmp_path, "StudyInstanceUID,any_fracture,C1,L1,L2\n1.2,1,0,0,1\n")
    assert read_labels(path, LUMBAR) == {"1.2": {"any_fracture": 1, "L1": 0, "L2": 1}}
    with pytest.raises(UsageError, match="patient_overall"):
        read_labels(path, COMPETITION)
    path = csv(tmp_path, "row_id\n1.2_L2\n1.2_any_fracture\n")
    assert [row[2] for row in read_row_ids(path, LUMBAR)] == ["L2", "any_fracture"]
    with pytest.raises(UsageError, match="names no target"):
        read_row_ids(path, COMPETITION)


def test_targets_are_loaded_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    path.write_text(json.dumps(LUMBAR.to_json()))
    assert load_targets(str(path)) == LUMBAR


@pytest.mark.parametrize("text", ["", "[]", '{"levels": ["L9"]}', "[" * 100_000, "\ud800"])
def test_a_file_without_targets_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "targets.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UsageError) as caught:
        load_targets(str(path))
    assert (caught.value.kind, caught.value.key) == ("config-invalid", str(path))
    with pytest.raises(UsageError, match="source-not-found"):
        load_targets(str(tmp_path / "none.json"))
