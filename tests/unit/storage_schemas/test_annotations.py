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
        TRAIN + "1.2,1,0,1,0,0,0,0,yes\n",
        TRAIN + "1.2,1,0,1,0,0,0,0\n",
        TRAIN + "1.2,0,0,0,0,0,0,0,0,0\n",
        TRAIN + ",0,0,0,0,0,0,0,0\n",
        TRAIN + '1.2,0,0,"0,0,0,0,0,0\n',
        TRAIN.replace("C7", "C6") + "1.2,0,0,0,0,0,0,0,0\n",
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


def test_a_table_of_a_whole_set_over_a_part_of_it_is_counted() -> None:
    assert check_studies(["1.2"], ["1.2", "1.3"], "train.csv") == 0
    assert check_studies(["1.2", "9.9", "9.8"], ["1.2"], "train.csv") == 2
    assert check_studies([], ["1.2"], "train.csv") == 0


def test_a_table_of_another_set_is_refused() -> None:
    with pytest.raises(UsageError, match=r"none of its 2 studies is there, first 9\.8"):
        check_studies(["9.9", "9.8"], ["1.2"], "train.csv")


def labels_of(tmp_path: Path, *rows: str, **given: str) -> dict[str, dict[str, int | None]]:
    text = TRAIN + "".join(f"{row}\n" for row in rows)
    return read_labels(csv(tmp_path, text), COMPETITION, **given)  # type: ignore[arg-type]


def values(found: dict[str, dict[str, int | None]], study: str = "1.2") -> list[int | None]:
    return [found[study][name] for name in COMPETITION.columns]


KNOWN = [1, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "row",
    [
        "1.2,1,0,1,0,0,0,0,0",
        "1.2,1.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0",
        "1.2,1.,0.,1.,0.,0.,0.,0.,0.",
        "1.2,True,False,True,False,False,False,False,False",
        "1.2,TRUE,FALSE,TRUE,FALSE,FALSE,FALSE,FALSE,FALSE",
        '"1.2","1","0","1","0","0","0","0","0"',
        " 1.2 , 1, 0, 1, 0, 0, 0, 0, 0 ",
    ],
)
def test_labels_are_labels_however_a_program_writes_them(tmp_path: Path, row: str) -> None:
    assert values(labels_of(tmp_path, row)) == KNOWN


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + TRAIN + "1.2,1,0,1,0,0,0,0,0\n",
        (TRAIN + "1.2,1,0,1,0,0,0,0,0\n").replace("\n", "\r\n"),
        (TRAIN + "1.2,1,0,1,0,0,0,0,0\n").replace(",", ";"),
        (TRAIN + "1.2,1,0,1,0,0,0,0,0\n").replace(",", "\t"),
        TRAIN.replace(",", ";") + "1.2;1,0;0,0;1,0;0,0;0,0;0,0;0,0;0,0\n",
        TRAIN.replace("\n", ",site\n") + "1.2,1,0,1,0,0,0,0,0,a\n",
        "C7,C6,C5,C4,C3,C2,C1,patient_overall,StudyInstanceUID,\n0,0,0,0,0,1,0,1,1.2,\n",
        TRAIN + "\n1.2,1,0,1,0,0,0,0,0\n,,,,,,,,\n",
        TRAIN + "1.2,1,0,1,0,0,0,0,0",
    ],
    ids=["bom", "crlf", "semicolon", "tab", "comma", "columns", "order", "empty", "end"],
)
def test_tables_are_read_however_a_program_writes_them(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    assert values(read_labels(str(path), COMPETITION)) == KNOWN


def test_a_table_that_excel_saved_as_unicode_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes((TRAIN + "1.2,1,0,1,0,0,0,0,0\n").replace(",", "\t").encode("utf-16"))
    assert values(read_labels(str(path), COMPETITION)) == KNOWN


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "NA", "<NA>", "None", "null"])
def test_an_empty_cell_is_an_unknown_label_of_that_level_alone(tmp_path: Path, cell: str) -> None:
    found = labels_of(tmp_path, f"1.2,1,0,1,{cell},0,0,0,0", "1.3,0,0,0,0,0,0,0,0")
    assert values(found) == [1, 0, 1, None, 0, 0, 0, 0]
    assert values(found, "1.3") == [0] * 8


@pytest.mark.parametrize("cell", ["2", "-1", "0.5", "yes", "1e400", "inf", "1 0", "0x1"])
def test_a_cell_that_is_no_label_is_named_by_line_and_column(tmp_path: Path, cell: str) -> None:
    with pytest.raises(UsageError, match=rf"line 3, column C3: '{cell}' is no") as caught:
        labels_of(tmp_path, "1.3,0,0,0,0,0,0,0,0", f"1.2,1,0,1,{cell},0,0,0,0")
    assert caught.value.kind == "csv-invalid"


def test_equal_rows_of_a_study_are_one_and_unknown_cells_contradict_nothing(tmp_path: Path) -> None:
    found = labels_of(tmp_path, "1.2,1,0,1,0,0,0,0,0", "1.2,1.0,0,1,,0,0,0,0")
    assert (list(found), values(found)) == (["1.2"], KNOWN)


def test_rows_of_a_study_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 3, column C1: '1' is 0 in line 2, of the same"):
        labels_of(tmp_path, "1.2,1,0,1,0,0,0,0,0", "1.2,1,1,0,0,0,0,0,0")


@pytest.mark.parametrize(
    ("row", "mended"),
    [
        ("1.2,0,0,1,0,0,0,0,0", [1, 0, 1, 0, 0, 0, 0, 0]),
        ("1.2,0,,1,0,0,0,0,0", [1, None, 1, 0, 0, 0, 0, 0]),
        ("1.2,1,0,0,0,0,0,0,0", [1] + [None] * 7),
    ],
)
def test_a_patients_label_that_contradicts_the_levels_is_refused_or_mended_towards_the_fracture(
    tmp_path: Path, row: str, mended: list[int | None]
) -> None:
    with pytest.raises(UsageError, match=r"line 2: patient_overall of 1\.2 is .*1 such") as caught:
        labels_of(tmp_path, row)
    assert caught.value.kind == "labels-contradictory"
    assert values(labels_of(tmp_path, row, overall="mend")) == mended


@pytest.mark.parametrize("row", ["1.2,1,,0,0,0,0,0,0", "1.2,,0,1,0,0,0,0,0", "1.2,0,,0,0,0,0,0,0"])
def test_an_unknown_label_contradicts_nothing(tmp_path: Path, row: str) -> None:
    assert None in values(labels_of(tmp_path, row))


def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(TRAIN.encode() + b"1.2,0,0,0,0,0,0,0,0\n1.3,\xff\n")
    with pytest.raises(UsageError, match="line 3: no UTF-8 text"):
        read_labels(str(path), COMPETITION)


def test_repeated_boxes_are_one_and_numbers_may_be_floats(tmp_path: Path) -> None:
    text = "StudyInstanceUID,x,y,width,height,slice_number,note\n" + "1.2,1,2,3,4,133.0,a\n" * 2
    assert read_boxes(csv(tmp_path, text)) == {"1.2": [FractureBox(1, 2, 3, 4, 133)]}


def test_a_row_id_of_a_study_that_holds_underscores_is_split_at_its_target(tmp_path: Path) -> None:
    rows = read_row_ids(csv(tmp_path, "row_id\nID_f65_patient_overall\nID_f65_C1\n"), COMPETITION)
    assert [row[1:] for row in rows] == [("ID_f65", "patient_overall"), ("ID_f65", "C1")]


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
