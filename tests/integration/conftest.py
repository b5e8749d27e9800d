"""Fixtures that several integration tests share."""

from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.phantom import make_cohort
from tests.runs import SETTINGS
from training.cli import main as training_main


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cohort of 20 small studies, all with masks, and its store."""
    root = tmp_path_factory.mktemp("phantom")
    cohort, store = root / "cohort", root / "store"
    make_cohort(cohort, studies=20, seed=0, size=48, slices=24, workers=1)
    annotations = ["--labels", str(cohort / "train.csv")]
    annotations += ["--boxes", str(cohort / "train_bounding_boxes.csv")]
    masks = ["--masks", str(cohort / "segmentations")]
    assert main(["run", str(cohort), str(store), "--serial", *masks, *annotations]) == 0
    return cohort, store


@pytest.fixture(scope="session")
def whole(phantom: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of `boost` on the phantom's store; tests must not write to it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert training_main(["boost", str(phantom[1]), str(run), *SETTINGS]) == 0
    return run
