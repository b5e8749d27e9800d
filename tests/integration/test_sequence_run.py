"""Sequence models, folds and ensembles from the command line, on a small phantom cohort."""

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cli import main as pipeline_main
from pipeline.phantom import make_cohort
from storage_schemas.vertebrae import LABEL_COLUMNS
from training.cli import main
from training.models.sequence_model import load_sequence_model
from training.models.slice_model import load_model

SETTINGS = [
    *("--preset", "demo", "--size", "32", "--patch", "8", "--width", "16", "--epochs", "1"),
    *("--slices-per-round", "80", "--rounds", "2"),
    *("--guard", "0.2", "--calibration", "0.25", "--test", "0.2"),
]
Captured = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Site:
    """A cohort, its store, a run of slice models and one of sequence models, and their ensemble."""

    cohort: Path
    store: Path
    slices: Path
    sequences: Path
    blend: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("sequences")
    names = ("cohort", "store", "slices", "sequences", "blend")
    found = Site(*(root / name for name in names))
    make_cohort(found.cohort, studies=36, seed=1, size=40, slices=18, workers=1)
    annotations = [f"--labels={found.cohort / 'train.csv'}"]
    annotations += [f"--boxes={found.cohort / 'train_bounding_boxes.csv'}"]
    masks = f"--masks={found.cohort / 'segmentations'}"
    store = str(found.store)
    assert pipeline_main(["run", str(found.cohort), store, "--serial", masks, *annotations]) == 0
    sequence = ["--recipe", "sequence", "--mask", "--neighbours", "5"]
    assert main(["boost", store, str(found.sequences), *SETTINGS, *sequence]) == 0
    assert main(["boost", store, str(found.slices), *SETTINGS, "--recipe", "seed"]) == 0
    runs = [str(found.slices), str(found.sequences)]
    assert main(["blend", str(found.blend), *runs, "--store", store]) == 0
    return found


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def table_of(path: Path) -> dict[str, np.ndarray]:
    with path.open() as stream:
        return {
            row["StudyInstanceUID"]: np.array([float(row[target]) for target in LABEL_COLUMNS])
            for row in csv.DictReader(stream)
        }


def predict(site: Site, run: Path, out: Path, *more: str) -> dict[str, np.ndarray]:
    assert main(["predict", str(run), str(site.store), str(out), *more]) == 0
    return table_of(out)


def test_sequence_models_are_trained_in_guarded_rounds(site: Site) -> None:
    history = lines_of(site.sequences / "rounds.jsonl")
    assert [line["round"] for line in history] == [1, 2]
    assert history[0]["accepted"]
    model, inputs = load_sequence_model(site.sequences / "model")
    assert (inputs.channels, model.config.encoder.num_channels) == (6, 6)
    losses = [line["guard_loss"] for line in history]
    assert losses == sorted(losses, reverse=True)


def test_a_frozen_round_starts_from_a_run_and_keeps_the_encoder(
    site: Site, tmp_path: Path
) -> None:
    more = ["--recipe", "sequence", "--frozen", "--model", str(site.slices / "model")]
    assert main(["boost", str(site.store), str(tmp_path / "r"), *SETTINGS, *more]) == 0
    assert list((tmp_path / "r" / "features").rglob("features.f16"))
    frozen, _ = load_sequence_model(tmp_path / "r" / "model")
    start, _ = load_model(site.slices / "model")
    for name, value in start.base_model.state_dict().items():
        assert torch.equal(frozen.encoder.state_dict()[name], value), name


def test_evaluation_and_card_of_a_sequence_run(site: Site, capsys: Captured) -> None:
    card = site.sequences / "model" / "README.md"
    assert "Not evaluated yet" in card.read_text()
    assert main(["evaluate", str(site.sequences), str(site.store)]) == 0
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"locked test: model \d\.\d{3}, best constant \d\.\d{3}", verdict)
    told = card.read_text()
    losses = json.loads((site.sequences / "evaluation.json").read_text())["losses"]
    assert f"| model | {losses['model']['all']:.3f} |" in told
    for fact in (
        "Not a medical device",
        "external hospital",
        "95 % confidence interval",
        "sequence model",
    ):
        assert fact in told
    splits = json.loads((site.sequences / "splits.json").read_text())
    assert not [study for side in splits.values() for study in side if study in told]


def test_an_ensemble_predicts_the_weighted_mean_of_its_runs(site: Site, tmp_path: Path) -> None:
    document = json.loads((site.blend / "blend.json").read_text())
    weights = dict(zip(document["fitted"]["names"], document["fitted"]["weights"], strict=True))
    parts = {
        run.name: predict(site, run, tmp_path / f"{run.name}.csv")
        for run in (site.slices, site.sequences)
    }
    for study, found in predict(site, site.blend, tmp_path / "blend.csv").items():
        expected = sum(weights[name] * parts[name][study] for name in parts)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_ensemble_is_evaluated_on_the_same_test_patients_and_reported(
    site: Site, tmp_path: Path, capsys: Captured
) -> None:
    assert main(["evaluate", str(site.blend), str(site.store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    splits = json.loads((site.slices / "splits.json").read_text())
    assert sorted(exam["study"] for exam in found["exams"]) == splits["test"]
    assert (
        f"| model | {found['losses']['model']['all']:.3f} |"
        in (site.blend / "README.md").read_text()
    )
    assert main(["report", str(site.blend), str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    for member in json.loads((site.blend / "blend.json").read_text())["members"]:
        assert f"<td>{member['folder']}</td><td>{member['run']}</td>" in page


def test_two_missing_levels_are_predicted_with_a_warning_and_explained(
    site: Site, tmp_path: Path, capsys: Captured
) -> None:
    study = min(path for path in (site.cohort / "train_images").iterdir())
    source, store = tmp_path / "new", tmp_path / "s"
    (source / study.name).mkdir(parents=True)
    for slice_ in study.iterdir():
        (source / study.name / slice_.name).symlink_to(slice_)
    masks = ["--masks", str(site.cohort / "segmentations"), "--vertebrae", "C1,C2,C4,C5,C7"]
    assert pipeline_main(["run", str(source), str(store), "--serial", *masks]) == 0
    capsys.readouterr()
    pages = tmp_path / "pages"
    arguments = [str(site.sequences), str(store), str(tmp_path / "p.csv"), "--explain", str(pages)]
    assert main(["predict", *arguments]) == 0
    told = capsys.readouterr().err
    assert "C3 was not found in the scan" in told
    (chances,) = table_of(tmp_path / "p.csv").values()
    assert ((chances >= 0) & (chances <= 1)).all()
    document = json.loads((pages / f"{study.name}.json").read_text())
    assert list(document["probabilities"].values()) == pytest.approx(chances.tolist())
    assert [text[:2] for text in document["warnings"][:2]] == ["C3", "C6"]
    assert [level["level"] for level in document["levels"]] == ["C1", "C2", "C4", "C5", "C7"]
    for level in document["levels"]:
        assert sum(part["weight"] for part in level["slices"]) == pytest.approx(1, abs=1e-5)
        assert all(part["instance"] for part in level["slices"])
    page = (pages / f"{study.name}.html").read_text()
    assert "C3 was not found in the scan" in page
    assert page.count("data:image/png;base64,") >= 2 * len(document["levels"])


def test_folds_give_out_of_fold_predictions_of_all_but_the_locked_patients(
    site: Site, tmp_path: Path
) -> None:
    run = tmp_path / "folds"
    arguments = [str(site.store), str(run), *SETTINGS, "--recipe", "seed", "--folds", "2"]
    assert main(["boost", *arguments, "--rounds", "1"]) == 0
    locked = json.loads((run / "splits.json").read_text())["test"]
    assert locked == json.loads((site.slices / "splits.json").read_text())["test"]
    found = table_of(run / "out-of-fold.csv")
    assert len(found) == 36 - len(locked)
    assert not set(found) & set(locked)
    assert set(predict(site, run, tmp_path / "p.csv")) == set(found) | set(locked)
    assert main(["evaluate", str(run), str(site.store)]) == 0
    assert main(["report", str(run), str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert re.findall(r"<h3>(fold-\d)</h3>", page) == ["fold-1", "fold-2"]
    assert page.count("1 of 1 planned rounds") == 2
