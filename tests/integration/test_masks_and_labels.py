"""Masks and labels that a stranger gives: each is right in the store, or refused by its name."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.cli import main
from pipeline.phantom import make_cohort
from storage_schemas.store import StudyStore
from storage_schemas.targets import COMPETITION
from storage_schemas.vertebrae import CERVICAL
from tests.studies import SLICES, write_cohort
from training.data.cohort import VertebraCrop, label_table, labelled, read_cohort

TRAIN = "StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7\n"
BOXES = "StudyInstanceUID,x,y,width,height,slice_number\n"
STUDY = "1.2.1"
C2_ROW, C2_BOX = f"{STUDY},1,0,1,0,0,0,0,0\n", f"{STUDY},20,14,6,5,{SLICES - 23}\n"
"""C2 fills z 22 to 24; file n holds z = SLICES - n."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source, _ = write_cohort(tmp_path, studies=2)
    return source


def run(tmp_path: Path, *given: str, store: str = "s") -> int:
    where = [str(tmp_path / "source"), str(tmp_path / store)]
    return main(["run", *where, "--serial", "--json", "--masks", str(tmp_path / "masks"), *given])


def rows(
    tmp_path: Path, table: str, study: str = STUDY, store: str = "s"
) -> list[dict[str, object]]:
    read = StudyStore.open(str(tmp_path / store)).read_table(table).to_pylist()
    return [row for row in read if row["study"] == study]


def shown(tmp_path: Path, level: str) -> dict[object, object]:
    return {r["z"]: r["fractured"] for r in rows(tmp_path, "slices") if r["level"] == level}


def vertebra(tmp_path: Path, level: str, study: str = STUDY) -> VertebraCrop:
    cohort = read_cohort(StudyStore.open(str(tmp_path / "s")), COMPETITION)
    (found,) = [v for s in cohort if s.study == study for v in s.vertebrae if v.level == level]
    return found


def annotate(tmp_path: Path, train: str = "", boxes: str = "") -> list[str]:
    given = []
    for flag, head, text in ("--labels", TRAIN, train), ("--boxes", BOXES, boxes):
        if text:
            path = tmp_path / f"{flag[2:]}.csv"
            path.write_text(head + text)
            given += [flag, str(path)]
    return given


Change = Callable[[nib.Nifti1Image], bytes]


def relabelled(image: nib.Nifti1Image, names: dict[int, int]) -> bytes:
    values = np.asarray(image.dataobj)
    return nib.Nifti1Image(
        np.vectorize(lambda v: names.get(v, v))(values).astype(np.uint8), image.affine
    ).to_bytes()


def from_below(image: nib.Nifti1Image) -> bytes:
    return relabelled(image, {n: 8 - n for n in range(1, 8)})


def other_convention(image: nib.Nifti1Image) -> bytes:
    return relabelled(image, {n: 51 - n for n in range(1, 8)})


def exchanged(image: nib.Nifti1Image) -> bytes:
    return relabelled(image, {3: 4, 4: 3})


def wrong_qform(image: nib.Nifti1Image) -> bytes:
    moved = image.affine.copy()
    moved[:3, 3] += [0, 12, 0]
    image.set_sform(image.affine, 1)
    image.set_qform(moved, 1)
    return image.to_bytes()


def wrong_sform(image: nib.Nifti1Image) -> bytes:
    moved = image.affine.copy()
    image.set_qform(moved, 1)
    moved[:3, 3] += [0, 12, 0]
    image.set_sform(moved, 1)
    return image.to_bytes()


def in_air(image: nib.Nifti1Image) -> bytes:
    moved = image.affine.copy()
    moved[:3, 3] += [0, 12, 0]
    return nib.Nifti1Image(image.dataobj, moved).to_bytes()


def elsewhere(image: nib.Nifti1Image) -> bytes:
    moved = image.affine.copy()
    moved[:3, 3] += [500, 0, 0]
    return nib.Nifti1Image(image.dataobj, moved).to_bytes()


def infinite_offset(image: nib.Nifti1Image) -> bytes:
    data = image.to_bytes()
    return data[:108] + np.float32(np.inf).tobytes() + data[112:]


def negative_side(image: nib.Nifti1Image) -> bytes:
    data = image.to_bytes()
    return data[:42] + np.int16(-1).tobytes() + data[44:]


def bgzipped(image: nib.Nifti1Image) -> bytes:
    data = image.to_bytes()
    return gzip.compress(data[:5000]) + gzip.compress(data[5000:]) + gzip.compress(b"")


def as_floats(image: nib.Nifti1Image) -> bytes:
    return nib.Nifti1Image(np.asarray(image.dataobj, np.float32), image.affine).to_bytes()


def halves(image: nib.Nifti1Image) -> bytes:
    return nib.Nifti1Image(np.asarray(image.dataobj) * np.float32(0.5), image.affine).to_bytes()


REFUSED = {
    from_below: ("vertebra-out-of-order", "from the feet to the head"),
    other_convention: ("vertebra-not-found", "its labels are 44, 45, 46, 47, 48, 49, 50"),
    in_air: ("mask-off-bone", "mean HU inside the mask"),
    elsewhere: ("mask-outside-volume", "0% of the mask lies in the CT"),
    infinite_offset: ("mask-unreadable", "vox_offset is inf"),
    negative_side: ("mask-unreadable", "dim is [-1, 40, 32]"),
    halves: ("mask-unreadable", "whole labels"),
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
@pytest.mark.usefixtures("source")
def test_a_mask_that_cannot_be_right_quarantines_its_study_by_name(
    tmp_path: Path, change: Change
) -> None:
    path = tmp_path / "masks" / f"{STUDY}.nii"
    path.write_bytes(change(nib.Nifti1Image.from_bytes(path.read_bytes())))
    assert run(tmp_path) == 1
    (study,) = rows(tmp_path, "studies")
    kind, reason = REFUSED[change]
    assert (study["outcome"], study["kind"]) == ("quarantined", kind)
    assert reason in str(rows(tmp_path, "quarantine")[0]["reason"])
    assert len(rows(tmp_path, "vertebrae", "1.2.2")) == 7, "the other study is untouched"


@pytest.mark.parametrize(
    "change", [wrong_qform, wrong_sform, bgzipped, as_floats], ids=lambda change: change.__name__
)
@pytest.mark.usefixtures("source")
def test_a_mask_gives_the_same_crops_however_it_is_written(tmp_path: Path, change: Change) -> None:
    assert run(tmp_path) == 0
    path = tmp_path / "masks" / f"{STUDY}.nii"
    path.write_bytes(change(nib.Nifti1Image.from_bytes(path.read_bytes())))
    assert run(tmp_path, store="t") == 0
    crops = [
        {row["level"]: row["sha256"] for row in rows(tmp_path, "vertebrae", store=store)}
        for store in ("s", "t")
    ]
    assert crops[0] == crops[1]
    assert list(crops[0]) == list(CERVICAL)


@pytest.mark.usefixtures("source")
def test_two_exchanged_levels_have_no_crop_and_no_localizer_learns_from_their_mask(
    tmp_path: Path,
) -> None:
    path = tmp_path / "masks" / f"{STUDY}.nii"
    path.write_bytes(exchanged(nib.Nifti1Image.from_bytes(path.read_bytes())))
    assert run(tmp_path) == 0
    outcomes = {row["level"]: row["outcome"] for row in rows(tmp_path, "vertebrae")}
    assert outcomes.pop("C3") == outcomes.pop("C4") == "vertebra-out-of-order"
    assert set(outcomes.values()) == {"cropped"}
    assert [rows(tmp_path, "studies", s)[0]["overview_levels"] for s in (STUDY, "1.2.2")] == [
        False,
        True,
    ]


@pytest.mark.usefixtures("source")
def test_a_mask_that_is_named_otherwise_is_told_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    (masks / f"{STUDY}.nii").rename(masks / f"{STUDY}_seg.nii")
    assert run(tmp_path) == 2
    told = capsys.readouterr().err
    assert f"the mask '{STUDY}_seg' names study {STUDY}" in told
    (masks / f"{STUDY}_seg.nii").rename(masks / "9.9.9.nii")
    assert run(tmp_path) == 0, "masks of a whole set over a part of it are normal"


@pytest.mark.usefixtures("source")
def test_a_pair_of_mask_files_is_refused_by_name_and_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "masks" / f"{STUDY}.nii"
    image = nib.Nifti1Image.from_bytes(path.read_bytes())
    path.unlink()
    nib.Nifti1Pair(np.asarray(image.dataobj), image.affine).to_filename(path.with_suffix(".img"))
    assert run(tmp_path) == 1
    assert "one .nii file" in str(rows(tmp_path, "quarantine")[0]["reason"])


@pytest.mark.usefixtures("source")
def test_a_box_that_lies_on_no_vertebra_is_counted_named_and_no_negative(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = f"{STUDY},40,2,6,5,{SLICES - 24}\n"
    assert run(tmp_path, *annotate(tmp_path, C2_ROW, C2_BOX + beside)) == 0
    assert json.loads(capsys.readouterr().out)["boxes_unplaced"] == 1
    (row,) = rows(tmp_path, "quarantine")
    assert (row["kind"], row["key"]) == ("box-unplaced", f"{STUDY}/{SLICES - 24}.dcm")
    found = shown(tmp_path, "C2")
    assert (found[23], found[24], found[22]) == (1, None, 0)
    targets = vertebra(tmp_path, "C3").targets(1.0)
    crop = {r["z"]: r["crop_z"] for r in rows(tmp_path, "slices") if r["level"] == "C3"}
    assert np.isnan(targets[crop[24]]), "its slice is unlabelled in every crop"  # type: ignore[index]
    assert np.nansum(targets) == 0


@pytest.mark.usefixtures("source")
def test_a_box_whose_slice_number_meets_no_slice_leaves_no_negative(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *annotate(tmp_path, C2_ROW, C2_BOX + f"{STUDY},20,14,6,5,999\n")) == 0
    assert json.loads(capsys.readouterr().out)["boxes_unplaced"] == 1
    assert {z: v for z, v in shown(tmp_path, "C2").items() if v is not None} == {23: 1}
    assert set(shown(tmp_path, "C6").values()) == {0}
    assert 0 not in vertebra(tmp_path, "C2").targets(0.5)


@pytest.mark.usefixtures("source")
def test_a_fractured_level_without_a_box_is_weakly_labelled_and_not_0(tmp_path: Path) -> None:
    row = f"{STUDY},1,0,1,0,0,1,0,0\n"
    assert run(tmp_path, *annotate(tmp_path, row, C2_BOX)) == 0
    assert set(shown(tmp_path, "C5").values()) == {None}
    assert set(vertebra(tmp_path, "C5").targets(0.5).tolist()) == {0.5}
    assert set(vertebra(tmp_path, "C2").targets(0.5).tolist()) == {0.0, 1.0}


@pytest.mark.usefixtures("source")
def test_a_table_of_the_whole_set_over_two_studies_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = "".join(f"9.{n},0,0,0,0,0,0,0,0\n" for n in range(1900))
    given = annotate(tmp_path, C2_ROW + others, C2_BOX + "9.1,1,1,1,1,1\n")
    assert run(tmp_path, *given) == 0
    assert json.loads(capsys.readouterr().out)["labels_unmatched"] == 1900
    assert main(["catalog", str(tmp_path / "s"), *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels_unmatched"] == 1900
    assert rows(tmp_path, "studies")[0]["C2"] == 1


@pytest.mark.usefixtures("source")
def test_one_unknown_level_is_unlabelled_for_that_level_alone(tmp_path: Path) -> None:
    train = f"{STUDY},1.0,0.0,1.0,,0.0,0.0,0.0,0.0\n1.2.2,0,0,0,0,0,0,0,0\n"
    assert run(tmp_path, *annotate(tmp_path, train)) == 0
    (study,) = rows(tmp_path, "studies")
    assert [study[level] for level in CERVICAL] == [0, 1, None, 0, 0, 0, 0]
    assert np.isnan(vertebra(tmp_path, "C3").targets(0.5)).all()
    assert set(vertebra(tmp_path, "C4").targets(0.5).tolist()) == {0.0}
    store = StudyStore.open(str(tmp_path / "s"))
    scored = labelled(read_cohort(store, COMPETITION), store.url)
    assert [s.study for s in scored] == [STUDY, "1.2.2"]
    unknown = np.nan
    np.testing.assert_array_equal(
        label_table(scored),
        [[1, 0, 1, unknown, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]],
        "the study takes part with its known levels, and the unknown one is not taken for 0",
    )


@pytest.mark.usefixtures("source")
def test_a_patients_label_that_contradicts_a_level_is_never_trained_as_intact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = annotate(tmp_path, f"{STUDY},0,0,1,0,0,0,0,0\n1.2.2,1,0,0,0,0,0,0,0\n")
    assert run(tmp_path, *given) == 2
    told = capsys.readouterr().err
    assert f"line 2: patient_overall of {STUDY} is 0, fractured levels: C2 (2 such studies)" in told
    assert run(tmp_path, *given, "--overall", "mend") == 0
    columns = ["patient_overall", *CERVICAL]
    assert [rows(tmp_path, "studies")[0][name] for name in columns] == [1, 0, 1, 0, 0, 0, 0, 0]
    (other,) = rows(tmp_path, "studies", "1.2.2")
    assert [other[name] for name in columns] == [1] + [None] * 7


def test_labels_of_folders_that_are_named_by_no_uid_reach_their_studies(
    tmp_path: Path, source: Path
) -> None:
    (source / STUDY).rename(source / "ID_f65ffc7eb4")
    row = C2_ROW.replace(STUDY, "ID_f65ffc7eb4")
    assert run(tmp_path, *annotate(tmp_path, row)) in (0, 1)
    store = StudyStore.open(str(tmp_path / "s"))
    (study,) = [r for r in store.read_table("studies").to_pylist() if r["study"] != "1.2.2"]
    assert study["study"].startswith("2.25.")
    assert (study["patient_overall"], study["C2"]) == (1, 1)
    assert main(["catalog", str(tmp_path / "s"), *annotate(tmp_path, row)]) == 0


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The competition's archive: images, masks and tables side by side."""
    root = tmp_path_factory.mktemp("archive")
    make_cohort(root / "data", studies=2, size=48, slices=24, workers=1)
    return root


@pytest.mark.parametrize("source", ["data", "data/train_images", "data/"])
@pytest.mark.parametrize("here", [".", "data", ".."])
def test_masks_and_tables_are_found_beside_the_studies_from_any_folder(
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    here: str,
) -> None:
    monkeypatch.chdir(archive / here)
    given = ["--masks", "segmentations", "--labels", "train.csv"]
    given += ["--boxes", "train_bounding_boxes.csv", "--serial", "--json"]
    assert main(["run", str(archive / source), str(tmp_path / "s"), *given]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["committed"], counts["labels_unmatched"]) == (2, 0)
    assert counts["crops"] > 0


def test_a_file_in_the_working_folder_is_taken_before_one_beside_the_studies(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.csv").write_text(TRAIN)
    shutil.copytree(archive / "data" / "segmentations", "segmentations")
    given = ["--masks", "segmentations", "--labels", "train.csv", "--serial"]
    assert main(["run", str(archive / "data"), "s", *given]) == 0
    table = StudyStore.open("s").read_table("studies")
    assert table["patient_overall"].null_count == 2


def test_a_file_that_is_nowhere_is_told_with_the_places_that_were_looked_at(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = archive / "data"
    assert main(["run", str(source), str(tmp_path / "s"), "--masks", "nowhere"]) == 2
    told = capsys.readouterr().err
    assert "source-not-found" in told
    assert all(f"{place}/nowhere" in told for place in (Path.cwd(), source, archive))
    assert not (tmp_path / "s").exists()
