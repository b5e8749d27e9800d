"""`cspine-training` on a small phantom cohort, on damaged data, and with wrong usage."""

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pipeline.cli import main as pipeline_main
from storage_schemas.store import StudyStore
from storage_schemas.targets import COMPETITION
from tests.studies import write_cohort
from training.cli import main

SHARES = ["--guard", "0.2", "--calibration", "0.2", "--test", "0.2"]
SETTINGS = [
    *("--preset", "demo", "--size", "32", "--patch", "8", "--width", "16"),
    *("--rounds", "2", "--slices-per-round", "100", "--epochs", "1.5", *SHARES),
    *("--recipe", "seed", "--checkpoint-steps", "2"),
]
Captured = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Site:
    """Paths of the cohort, its store, and an uninterrupted run."""

    cohort: Path
    store: Path
    run: Path


def train(store: Path, run: Path, *more: str) -> int:
    return main(["boost", str(store), str(run), *SETTINGS, *more])


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def complaint(captured: Captured) -> str:
    printed = captured.readouterr().err
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("cspine-training: ")]
    return line


@pytest.fixture(autouse=True, scope="module")
def no_network() -> Iterator[None]:
    def refuse(*address: Any) -> None:
        raise AssertionError(f"the network was asked: {address}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(scope="module")
def site(phantom: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Site:
    found = Site(*phantom, tmp_path_factory.mktemp("training") / "run")
    assert train(found.store, found.run) == 0
    return found


@pytest.fixture
def run(site: Site, tmp_path: Path) -> Path:
    return Path(shutil.copytree(site.run, tmp_path / "run"))


@pytest.fixture
def store(site: Site, tmp_path: Path) -> Path:
    return Path(shutil.copytree(site.store, tmp_path / "store"))


def test_a_run_holds_its_plan_its_rounds_and_the_last_ones_model(site: Site) -> None:
    history = lines_of(site.run / "rounds.jsonl")
    plans = json.loads((site.run / "rounds.json").read_text())
    assert [line["round"] for line in history] == [1, 2]
    assert [line["slices"] for line in history] == [plan["slices"] for plan in plans]
    assert files_of(site.run / "model") == files_of(site.run / "rounds" / "02")
    assert files_of(site.run / "model") != files_of(site.run / "rounds" / "01")
    steps = lines_of(site.run / "metrics.jsonl")
    assert [line["step"] for line in steps if line["round"] == 2] == [1, 2, 3, 4]
    names = [path.name for path in site.run.iterdir()]
    assert not [name for name in names if name.startswith((".", "voxels-"))]


def test_rounds_train_on_training_patients_only_and_no_study_comes_twice(site: Site) -> None:
    splits = json.loads((site.run / "splits.json").read_text())
    trained = [
        study
        for plan in json.loads((site.run / "rounds.json").read_text())
        for study in plan["studies"]
    ]
    assert len(trained) == len(set(trained))
    assert set(trained) <= set(splits["train"])
    held = {*splits["guard"], *splits["calibration"], *splits["test"]}
    assert not set(trained) & held
    assert len(held) + len(splits["train"]) == 20


def test_a_model_folder_names_no_study(site: Site) -> None:
    studies = StudyStore.open(str(site.store)).studies()
    for path in (site.run / "model").iterdir():
        text = path.read_bytes().decode(errors="ignore")
        assert not [study for study in studies if study in text], path.name


def test_a_finished_run_run_again_changes_nothing(site: Site, run: Path) -> None:
    before = files_of(run)
    assert train(site.store, run) == 0
    assert files_of(run) == before


def lose_second_round(run: Path) -> None:
    lines = (run / "rounds.jsonl").read_text().splitlines(keepends=True)
    (run / "rounds.jsonl").write_text(lines[0])
    shutil.rmtree(run / "rounds" / "02")
    shutil.rmtree(run / "model")


def lose_line_of_second_round(run: Path) -> None:
    lines = (run / "rounds.jsonl").read_text().splitlines(keepends=True)
    (run / "rounds.jsonl").write_text(lines[0])


def lose_model(run: Path) -> None:
    shutil.rmtree(run / "model")


def lose_all_rounds(run: Path) -> None:
    (run / "rounds.jsonl").unlink()
    shutil.rmtree(run / "rounds")
    shutil.rmtree(run / "model")


def lose_plan(run: Path) -> None:
    lose_all_rounds(run)
    (run / "run.json").unlink()


@pytest.mark.parametrize(
    "stop",
    [lose_second_round, lose_line_of_second_round, lose_model, lose_all_rounds, lose_plan],
)
def test_a_stopped_run_resumes_to_the_same_model(
    site: Site, run: Path, stop: Callable[[Path], None]
) -> None:
    stop(run)
    kept = run / "rounds" / "01" / "model.safetensors"
    written = kept.stat().st_mtime_ns if kept.exists() else None
    assert train(site.store, run) == 0
    for part in ("model", "rounds"):
        assert files_of(run / part) == files_of(site.run / part)
    assert written in (None, kept.stat().st_mtime_ns)


def test_a_run_from_a_checkpoint_starts_with_its_weights(
    site: Site, tmp_path: Path, capsys: Captured
) -> None:
    more = ["--model", str(site.run / "model"), "--learning-rate", "1e-12", "--rounds", "1"]
    assert train(site.store, tmp_path / "r", *more) == 0
    weights = load_file(tmp_path / "r" / "model" / "model.safetensors")
    for name, tensor in load_file(site.run / "model" / "model.safetensors").items():
        if "running" not in name and "tracked" not in name:
            assert (weights[name] - tensor).abs().max() < 1e-6, name


def test_evaluate_and_report_print_the_same_headline(
    site: Site, run: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert main(["evaluate", str(run), str(site.store)]) == 0
    headline = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"locked test: model \d\.\d{3}, best constant \d\.\d{3}", headline)
    assert main(["report", str(run), str(tmp_path / "out" / "page.html")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert (printed[0], printed[-1]) == (headline, f"report: {tmp_path / 'out' / 'page.html'}")
    page = (tmp_path / "out" / "page.html").read_text()
    assert headline in page
    assert not re.search(r"(src|href)=.?(?!data:)(https?:|/|\w+\.)", page)


def test_evaluation_covers_the_test_patients_and_the_constant_one_half(
    site: Site, run: Path, capsys: Captured
) -> None:
    assert main(["evaluate", str(run), str(site.store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"stage": "evaluate"} | json.loads((run / "evaluation.json").read_text())
    splits = json.loads((run / "splits.json").read_text())
    assert sorted(exam["study"] for exam in found["exams"]) == splits["test"]
    assert found["losses"]["constant 0.5"]["all"] == pytest.approx(0.693147, abs=1e-6)
    losses = {name: loss["all"] for name, loss in found["losses"].items()}
    assert losses["best for the test"] == min(
        loss for name, loss in losses.items() if name != "model"
    )
    assert found["gain"] == pytest.approx(losses["best constant"] - losses["model"])


def test_predict_writes_the_rows_of_the_sample_submission(
    site: Site, run: Path, tmp_path: Path
) -> None:
    sample, out = tmp_path / "sample.csv", tmp_path / "submission.csv"
    rows = (site.cohort / "sample_submission.csv").read_text().splitlines()
    sample.write_text("\n".join([rows[0], *rows[:0:-1], "9.9.9_C3,0.5"]) + "\n")
    arguments = ["predict", str(run), str(site.store), str(out), "--submission", str(sample)]
    assert main(arguments) == 0
    wanted, written = rows_of(sample), rows_of(out)
    assert out.read_text().splitlines()[0] == "row_id,fractured"
    assert [row["row_id"] for row in written] == [row["row_id"] for row in wanted]
    table = {row["StudyInstanceUID"]: row for row in rows_of(out.with_suffix(".table.csv"))}
    for row in written[:-1]:
        study, _, target = row["row_id"].partition("_")
        assert 0 < float(row["fractured"]) < 1
        assert row["fractured"] == table[study][target]
    priors = json.loads((run / "model" / "calibration.json").read_text())["priors"]
    assert float(written[-1]["fractured"]) == priors[COMPETITION.columns.index("C3")]


def test_predict_agrees_with_evaluate_and_takes_no_labels(
    site: Site, run: Path, store: Path, tmp_path: Path, capsys: Captured
) -> None:
    main(["evaluate", str(run), str(store), "--json"])
    exams = json.loads(capsys.readouterr().out)["exams"]
    assert pipeline_main(["catalog", str(store)]) == 0
    assert main(["predict", str(run), str(store), str(tmp_path / "p.csv")]) == 0
    table = {row["StudyInstanceUID"]: row for row in rows_of(tmp_path / "p.csv")}
    assert len(table) == 20
    for exam in exams:
        found = [float(table[exam["study"]][target]) for target in COMPETITION.columns]
        assert found == pytest.approx(exam["probabilities"], abs=1e-5)


def test_predict_gives_the_prior_where_no_study_has_crops(run: Path, tmp_path: Path) -> None:
    source, _ = write_cohort(tmp_path, studies=1)
    assert pipeline_main(["run", str(source), str(tmp_path / "s"), "--serial"]) == 0
    assert main(["predict", str(run), str(tmp_path / "s"), str(tmp_path / "p.csv")]) == 0
    (row,) = rows_of(tmp_path / "p.csv")
    assert row["levels_by_prior"] == str(len(COMPETITION.levels))


def flip_bit(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


def cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("harm", "kind"),
    [(flip_bit, "array-damaged"), (cut, "array-damaged"), (Path.unlink, "array-missing")],
)
@pytest.mark.parametrize("command", ["boost", "evaluate", "predict"])
def test_a_damaged_shard_stops_with_code_1_and_one_line_that_names_it(
    run: Path,
    store: Path,
    tmp_path: Path,
    capsys: Captured,
    command: str,
    harm: Callable[[Path], None],
    kind: str,
) -> None:
    splits = json.loads((run / "splits.json").read_text())
    array = f"{splits['guard' if command == 'boost' else 'test'][0]}/C5/0"
    harm(store / "volumes.zarr" / array / "c" / "0" / "0" / "0")
    capsys.readouterr()
    more = {"boost": SETTINGS, "predict": [str(tmp_path / "p.csv")]}.get(command, [])
    places = [store, tmp_path / "new"] if command == "boost" else [run, store]
    assert main([command, *map(str, places), *more]) == 1
    line = complaint(capsys)
    assert array in line
    assert f"[{kind}]" in line
    assert not (tmp_path / "p.csv").exists()


def test_a_shard_damaged_in_the_second_round_keeps_the_first(
    site: Site, run: Path, store: Path, tmp_path: Path, capsys: Captured
) -> None:
    plans = json.loads((run / "rounds.json").read_text())
    shard = store / "volumes.zarr" / plans[1]["studies"][0] / "C1" / "0" / "c" / "0" / "0" / "0"
    whole = shard.read_bytes()
    flip_bit(shard)
    assert train(store, tmp_path / "new") == 1
    assert plans[1]["studies"][0] in complaint(capsys)
    assert [path.name for path in (tmp_path / "new" / "rounds").iterdir()] == ["01"]
    assert not (tmp_path / "new" / "model").exists()
    shard.write_bytes(whole)
    assert train(store, tmp_path / "new") == 0
    assert files_of(tmp_path / "new" / "model") == files_of(site.run / "model")


BadUse = Callable[[Site, Path, Path], list[str]]


def begun(site: Site, folder: Path) -> str:
    """A run that was begun and has no model yet."""
    shutil.copy(site.run / "run.json", folder)
    return str(folder)


BAD_USE: dict[str, tuple[BadUse, str]] = {
    "run of other settings": (
        lambda site, run, tmp: ["boost", str(site.store), str(run), *SETTINGS, "--seed", "7"],
        "RUN holds a different run.*[config-invalid]",
    ),
    "no store": (
        lambda site, run, tmp: ["boost", str(tmp / "no"), str(tmp / "r"), *SETTINGS],
        "no: there is no store [store-not-found]",
    ),
    "store is the run": (
        lambda site, run, tmp: ["evaluate", str(run), str(run)],
        "[store-not-found]",
    ),
    "no run": (
        lambda site, run, tmp: ["evaluate", str(tmp / "no"), str(site.store)],
        "no run.json in RUN [config-invalid]",
    ),
    "folder that is no run": (
        lambda site, run, tmp: ["predict", str(tmp), str(site.store), str(tmp / "p.csv")],
        "no run.json in RUN [config-invalid]",
    ),
    "run without model": (
        lambda site, run, tmp: [
            *("predict", begun(site, tmp), str(site.store), str(tmp / "p.csv")),
        ],
        "no model/calibration.json in RUN [config-invalid]",
    ),
    "checkpoint is no folder": (
        lambda site, run, tmp: [
            *("boost", str(site.store), str(tmp / "r"), "--model", str(tmp / "no")),
        ],
        "no: no config.json [model-invalid]",
    ),
    "patches that do not fit": (
        lambda site, run, tmp: [
            *("boost", str(site.store), str(tmp / "r"), "--size", "100", "--patch", "16"),
        ],
        "patches of 16 px do not fill 100 px [config-invalid]",
    ),
    "no rounds": (
        lambda site, run, tmp: ["boost", str(site.store), str(tmp / "r"), "--rounds", "0"],
        "[config-invalid]",
    ),
    "all patients held out": (
        lambda site, run, tmp: ["boost", str(site.store), str(tmp / "r"), "--test", "0.9"],
        "[config-invalid]",
    ),
    "too few patients": (
        lambda site, run, tmp: [
            *("boost", str(site.store), str(tmp / "r"), *SETTINGS, "--guard", "0.01"),
        ],
        "guard has 0 fractured [cohort-too-small]",
    ),
    "report before evaluate": (
        lambda site, run, tmp: ["report", str(run), str(tmp / "page.html")],
        "RUN has no evaluation yet [config-invalid]",
    ),
    "no sample submission": (
        lambda site, run, tmp: [
            *("predict", str(run), str(site.store), str(tmp / "p.csv")),
            *("--submission", str(tmp / "no.csv")),
        ],
        "no.csv [source-not-found]",
    ),
    "submission of other columns": (
        lambda site, run, tmp: [
            *("predict", str(run), str(site.store), str(tmp / "p.csv")),
            *("--submission", str(site.cohort / "train.csv")),
        ],
        "train.csv [csv-invalid]",
    ),
    "out is a folder": (
        lambda site, run, tmp: ["predict", str(run), str(site.store), str(tmp)],
        "cannot be written [config-invalid]",
    ),
}


def check_complaint(line: str, parts: str) -> None:
    message, _, kind = parts.rpartition("[")
    assert f"[{kind}" in line
    assert re.search(message.strip().rstrip(".*"), line)


@pytest.mark.parametrize("use", BAD_USE)
def test_bad_use_is_one_clear_line_and_code_2(
    site: Site, run: Path, tmp_path: Path, capsys: Captured, use: str
) -> None:
    arguments, parts = BAD_USE[use]
    given = arguments(site, run, tmp_path)
    before = files_of(run)
    capsys.readouterr()
    assert main(given) == 2
    check_complaint(complaint(capsys), parts)
    assert files_of(run) == before
    assert not (tmp_path / "r" / "run.json").exists()


def test_a_store_without_labels_is_one_clear_line_and_code_2(
    store: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert pipeline_main(["catalog", str(store)]) == 0
    capsys.readouterr()
    assert train(store, tmp_path / "r") == 2
    check_complaint(complaint(capsys), "no study has both labels and crops [labels-missing]")


def test_a_store_that_lacks_a_test_patient_is_not_evaluated(
    run: Path, store: Path, capsys: Captured
) -> None:
    first = json.loads((run / "splits.json").read_text())["test"][0]
    StudyStore.open(str(store)).discard(first)
    assert pipeline_main(["catalog", str(store), "--labels", str(write_labels(store))]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), str(store)]) == 2
    check_complaint(complaint(capsys), "1 of the run's 4 test patients [labels-missing]")


def write_labels(store: Path) -> Path:
    studies = StudyStore.open(str(store)).studies()
    path = store.parent / "labels.csv"
    header = ",".join(["StudyInstanceUID", *COMPETITION.columns])
    path.write_text("\n".join([header, *(f"{study},1,1,0,0,0,0,0,0" for study in studies)]) + "\n")
    return path


def spoil_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def drop_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def drop_calibration(model: Path) -> None:
    (model / "calibration.json").unlink()


def spoil_calibration(model: Path) -> None:
    (model / "calibration.json").write_text('{"centre": 1}')


def cut_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("harm", "parts"),
    [
        (spoil_config, "model: [model-invalid]"),
        (drop_weights, "no safetensors file [model-invalid]"),
        (drop_calibration, "calibration.json [config-invalid]"),
        (spoil_calibration, "calibration.json [config-invalid]"),
        (cut_weights, "model: [model-invalid]"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_spoilt_model_folder_is_one_clear_line_and_code_2(
    site: Site,
    run: Path,
    tmp_path: Path,
    capsys: Captured,
    harm: Callable[[Path], None],
    parts: str,
    command: str,
) -> None:
    harm(run / "model")
    capsys.readouterr()
    more = [str(tmp_path / "p.csv")] if command == "predict" else []
    assert main([command, str(run), str(site.store), *more]) == 2
    check_complaint(complaint(capsys), parts)


def test_the_installed_command_predicts_and_prints_only_its_own_lines(
    site: Site, run: Path, tmp_path: Path
) -> None:
    command = Path(sys.executable).with_name("cspine-training")
    done = subprocess.run(
        [command, "predict", run, site.store, tmp_path / "p.csv", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "default"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert (printed["stage"], printed["studies"], printed["levels_without_crop_by_prior"]) == (
        "predict",
        20,
        0,
    )
    assert printed["table"] == str(tmp_path / "p.csv")
    assert all("stage" in json.loads(line) for line in done.stderr.splitlines())
