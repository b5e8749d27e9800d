"""A localizer from a store to its file: scores, resumed training, and the exported file."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monai.losses import DiceCELoss
from safetensors.torch import save_file

from pipeline.vertebrae.onnx_network import choose_network, open_network
from storage_schemas.canonical import sha256_json
from storage_schemas.errors import RunError, UsageError
from storage_schemas.localizer_card import METADATA_KEY, OPSET, LocalizerCard
from storage_schemas.store import StudyStore
from storage_schemas.vertebrae import CERVICAL
from tests.overviews import SIDE, make_masked_store, make_overview
from training.cli import main
from training.localizer import loss as place_loss_room
from training.localizer import onnx_export as onnx_file
from training.localizer import train as stage
from training.localizer.config import CubeAugmentConfig, LocalizerConfig
from training.localizer.loss import SAMPLED_SHARE, place_loss, sample_places
from training.localizer.onnx_export import export_network
from training.localizer.overviews import assign_folds, read_masked
from training.localizer.scores import (
    fit_baseline,
    largest_piece,
    score_baseline,
    score_classes,
    score_levels,
)
from training.localizer.train import train_localizer
from training.localizer.unet import LocalizerNetwork, build_network, fold_blocks, unfold_blocks
from training.optimization.checkpoints import TrainingState

TINY = LocalizerConfig(
    size=SIDE,
    channels=(8, 16),
    units=1,
    steps=4,
    batch_size=2,
    folds=3,
    learning_rate=1e-2,
    ema_decay=0.9,
    augment=CubeAugmentConfig(rotate_degrees=3, shift_mm=4, scale=0.03),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    return make_masked_store(tmp_path_factory.mktemp("masked") / "store", 6)


# ---- scores ------------------------------------------------------------------------------------


def test_the_truth_scores_full_and_its_neighbours_names_score_nothing() -> None:
    _, levels = make_overview(0)
    findings = score_classes(levels, levels, (6, 4, 4), 8)
    assert all((f.dice, f.covered, f.misnamed) == (1.0, 1.0, False) for f in findings)
    below = np.where((levels > 1) & (levels < 8), levels - 1, 0).astype(np.uint8)
    wrong = score_classes(below, levels, (6, 4, 4), 0)
    assert [finding.misnamed for finding in wrong] == [True] * 6 + [False]
    assert all(finding.dice == 0 for finding in wrong)


def test_a_box_is_what_was_found_and_a_margin_in_mm() -> None:
    truth = np.zeros((16, 16, 16), np.uint8)
    truth[2:12, 4:8, 4:8] = 1
    found = np.zeros_like(truth)
    found[4:10, 4:8, 4:8] = 1
    covered = [
        score_classes(found, truth, (5.0, 1.0, 1.0), mm)[0].covered for mm in (0, 4.9, 5, 10)
    ]
    assert covered == [0.6, 0.6, 0.8, 1.0]
    assert score_classes(found, truth, (5.0, 1.0, 1.0), 0)[0].dice == pytest.approx(0.75)


def test_a_level_that_is_not_there_is_not_scored_but_may_not_be_found() -> None:
    _, levels = make_overview(0)
    cut = np.where(levels == 1, 0, levels).astype(np.uint8)
    (first, *_) = score_classes(levels, cut, (6, 4, 4), 8)
    assert (first.dice, first.covered, first.misnamed) == (None, None, True)
    missed = score_classes(cut, levels, (6, 4, 4), 8)[0]
    assert (missed.dice, missed.covered, missed.misnamed) == (0.0, 0.0, False)
    scores = score_levels([first, missed])
    assert (scores["C1"].vertebrae, scores["C1"].dice, scores["C1"].covered) == (1, 0.0, 0.0)
    assert (scores["C2"].vertebrae, scores["C2"].dice) == (0, None)


def test_the_largest_piece_is_kept_and_corners_join() -> None:
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    mask[4, 4, 4] = True
    assert np.argwhere(largest_piece(mask)).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_the_constant_baseline_is_the_mean_box_and_the_most_frequent_voxels() -> None:
    cubes = [np.zeros((12, 12, 12), np.uint8) for _ in range(3)]
    for shift, cube in enumerate(cubes):
        cube[2 + shift : 6 + shift, 3:6, 3:6] = 1
    guess = fit_baseline(cubes)
    assert guess.boxes[0].tolist() == [[3, 6], [3, 5], [3, 5]]
    assert np.isnan(guess.boxes[1:]).all()
    assert (guess.voxels[0] == (cubes[1] == 1)).all()
    (first, second, *_) = score_baseline(guess, cubes[0], (1, 1, 1), 0)
    assert (first.dice, first.covered) == (0.75, 0.75)
    assert second.dice is None


def as_classes(levels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(levels).long()[None, None]


# ---- the network -------------------------------------------------------------------------------


def test_blocks_of_voxels_fold_into_channels_and_back() -> None:
    cube = torch.arange(2 * 3 * 8 * 4 * 6).reshape(2, 3, 8, 4, 6)
    folded = fold_blocks(cube, 2)
    assert folded.shape == (2, 24, 4, 2, 3)
    assert folded[1, 8, 2, 1, 0] == cube[1, 1, 4, 2, 0]
    assert torch.equal(unfold_blocks(folded, 2), cube)


def test_a_new_network_predicts_mostly_background() -> None:
    network = build_network(TINY, 0).eval()
    hu = torch.from_numpy(make_overview(0)[0]).float()[None, None]
    with torch.inference_mode():
        background = network(hu).softmax(dim=1)[:, 0].mean()
    assert background > 0.8


def test_classified_places_equal_those_of_the_full_cube() -> None:
    network = build_network(TINY, 0).eval()
    hu, levels = make_overview(0)
    cube = torch.from_numpy(hu).float()[None, None]
    places = sample_places(as_classes(levels), TINY.block, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        named = network.classify_places(network.extract_features(cube), places.sample, places.place)
        whole = fold_blocks(network(cube), TINY.block).reshape(1, 9, 8, -1)
    expected = whole[0, :, :, places.place].permute(2, 0, 1)
    assert torch.allclose(named, expected, atol=1e-5)


def test_every_place_with_a_vertebra_counts_and_sampled_others_are_weighted() -> None:
    levels = make_overview(0)[1]
    places = sample_places(as_classes(levels), 2, torch.Generator().manual_seed(0))
    assert int((places.classes > 0).sum()) == int((levels > 0).sum())
    holds = (places.classes > 0).any(dim=1)
    assert set(places.weight[holds].tolist()) == {1.0}
    assert set(places.weight[~holds].tolist()) == {1 / SAMPLED_SHARE}
    assert places.weight.sum() == pytest.approx((SIDE // 2) ** 3, rel=0.1)


def test_the_loss_over_places_is_that_over_all_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = make_overview(0)[1]
    truth = as_classes(levels)
    logits = torch.randn(1, 9, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += 4
    peers = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    def loss_of(seed: int) -> float:
        places = sample_places(truth, 2, torch.Generator().manual_seed(seed))
        folded = fold_blocks(logits, 2).reshape(9, 8, -1)
        return float(place_loss(folded[:, :, places.place].permute(2, 0, 1), places))

    whole = float(peers(logits, truth))
    assert np.mean([loss_of(seed) for seed in range(20)]) == pytest.approx(whole, abs=0.01)
    monkeypatch.setattr(place_loss_room, "SAMPLED_SHARE", 1.0)
    assert loss_of(0) == pytest.approx(whole, abs=1e-3)


def test_a_cube_without_vertebrae_has_a_loss_too() -> None:
    nothing = torch.zeros(1, 1, 8, 8, 8, dtype=torch.int64)
    places = sample_places(nothing, 2, torch.Generator().manual_seed(0))
    logits = torch.zeros(len(places.place), 9, 8)
    assert float(place_loss(logits, places)) == pytest.approx(np.log(9), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": 96}, "32, 64, 128"),
        ({"channels": (8,) * 6}, "stages"),
        ({"channels": (8,)}, "stages"),
        ({"fold": 3}, "less than the 3 folds"),
        ({"folds": 1}, "fold"),
        ({"steps": 0}, "at least 1"),
        ({"ema_decay": 1.0}, "below 1"),
        ({"margin_mm": -1.0}, "margin"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(TINY, **changes)  # type: ignore[arg-type]


# ---- training ----------------------------------------------------------------------------------


def probabilities(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    hu = np.stack([make_overview(seed)[0] for seed in (7, 8)])[:, None].astype(np.float32)
    return np.asarray(session.run(["probabilities"], {"overview": hu})[0])


def test_it_beats_the_constant_baseline_and_writes_a_file_that_the_pipeline_accepts(
    tmp_path: Path,
) -> None:
    store = make_masked_store(tmp_path / "store", 12)
    out = tmp_path / "made" / "localizer.onnx"
    card = train_localizer(store, out, replace(TINY, steps=60, channels=(16, 32)))
    found = np.mean([card.scores[level].dice for level in CERVICAL])
    constant = np.mean([card.baseline[level].dice for level in CERVICAL])
    assert found > constant + 0.1
    assert sorted(path.name for path in out.parent.iterdir()) == ["localizer.json", out.name]
    assert LocalizerCard.from_json(json.loads(out.with_suffix(".json").read_text())) == card
    model = onnx.load(out, load_external_data=False)
    (entry,) = model.metadata_props
    assert entry.key == METADATA_KEY
    assert LocalizerCard.from_text(entry.value) == card
    assert not any(weight.external_data for weight in model.graph.initializer)
    assert model.opset_import[0].version >= OPSET
    assert 0 <= card.difference < 1e-3
    given = probabilities(out)
    assert given.shape == (2, 9, SIDE, SIDE, SIDE)
    assert np.abs(given.sum(axis=1) - 1).max() < 1e-5
    assert not set(card.training_studies) & set(card.folds[card.held_out])
    network = open_network(choose_network(str(out)))
    assert network.size == SIDE
    one = network.predict(make_overview(7)[0].astype(np.float32))
    assert np.abs(one - given[0]).max() < 1e-5


def weights_of(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights of each localizer at its export, which is skipped."""
    weights: list[dict[str, torch.Tensor]] = []

    def keep(network: LocalizerNetwork, *told: object) -> tuple[None, float]:
        weights.append(network.state_dict())
        return None, 0.0

    monkeypatch.setattr(stage, "export_network", keep)
    monkeypatch.setattr(stage, "write_localizer", lambda *told: None)
    return weights


def test_an_interrupted_training_resumes_to_the_same_localizer(
    store: StudyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = weights_of(monkeypatch)
    train_localizer(store, tmp_path / "whole.onnx", TINY)
    out = tmp_path / "stopped.onnx"
    save = stage.write_training

    def save_and_stop(path: Path, state: TrainingState, step: int, settings: Any) -> None:
        save(path, state, step, settings)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage, "write_training", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_localizer(store, out, TINY)
    with pytest.raises(UsageError, match="other settings"):
        train_localizer(store, out, replace(TINY, learning_rate=1e-3))
    steps: list[int] = []
    draw = stage._sample_batch
    monkeypatch.setattr(
        stage, "_sample_batch", lambda *told: (steps.append(told[3]), draw(*told))[1]
    )
    train_localizer(store, out, TINY)
    assert steps == [2, 3]
    whole, stopped = exported
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert not list(tmp_path.iterdir())


def test_equal_seeds_train_equally_and_others_do_not(
    store: StudyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = weights_of(monkeypatch)
    for config in (TINY, TINY, replace(TINY, seed=1)):
        train_localizer(store, tmp_path / "localizer.onnx", replace(config, steps=1))
    first, again, other = ([*weights.values()] for weights in exported)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_the_last_steps_only_mirror_left_and_right(
    store: StudyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_of(monkeypatch)
    transforms: list[torch.Tensor] = []
    transform_cubes = stage.transform_cubes
    monkeypatch.setattr(
        stage,
        "transform_cubes",
        lambda *told: (transforms.append(told[2]), transform_cubes(*told))[1],
    )
    train_localizer(store, tmp_path / "localizer.onnx", replace(TINY, settle=0.5))
    plain = [torch.equal(matrix.abs(), torch.eye(3, 4).expand(2, 3, 4)) for matrix in transforms]
    assert plain == [False, False, True, True]


def test_a_damaged_state_is_refused_by_name(store: StudyStore, tmp_path: Path) -> None:
    out = tmp_path / "localizer.onnx"
    state = tmp_path / ".localizer.onnx.training.safetensors"
    begun = build_network(TINY, 0)
    # A file of another format, one that lacks a weight, and one that is no safetensors file.
    save_file({}, state)
    others = state.read_bytes()
    settings = {
        "config": TINY.to_json(),
        "folds": sha256_json(assign_folds(read_masked(store), TINY.folds, TINY.seed)),
    }
    save_file(
        {f"average.{name}": value for name, value in begun.state_dict().items()},
        state,
        metadata={"cspine": json.dumps({**settings, "step": 2})},
    )
    for data in (others, state.read_bytes(), b"damaged"):
        state.write_bytes(data)
        with pytest.raises(UsageError, match="cannot read") as refused:
            train_localizer(store, out, TINY)
        assert refused.value.key == str(state)


@pytest.mark.parametrize("name", ["model.json", "model", "folder.onnx", "file/model.onnx"])
def test_a_file_that_cannot_be_written_is_refused_first(
    store: StudyStore, tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError) as refused:
        train_localizer(store, tmp_path / name, TINY)
    assert refused.value.kind == "config-invalid"
    assert refused.value.key == str(tmp_path / name)


def test_a_loss_that_is_no_number_stops_the_training(
    store: StudyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "place_loss", lambda logits, places: logits.sum() * math.nan)
    with pytest.raises(RunError) as refused:
        train_localizer(store, tmp_path / "localizer.onnx", TINY)
    assert refused.value.kind == "training-diverged"


def test_a_file_that_differs_from_its_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_DIFFERENCE", 0.0)
    hu = make_overview(0)[0].astype(np.float32)[None, None]
    with pytest.raises(RunError) as refused:
        export_network(build_network(replace(TINY, channels=(4, 4)), 0), SIDE, hu)
    assert refused.value.kind == "export-differs"


def test_the_command_prints_the_scores_and_where_the_file_is(
    store: StudyStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights_of(monkeypatch)
    out = tmp_path / "localizer.onnx"
    arguments = ["localizer", store.url, str(out), "--preset", "demo", "--size", str(SIDE)]
    assert main([*arguments, "--steps", "1", "--folds", "3", "--fold", "2"]) == 0
    told = capsys.readouterr().out
    assert f"localizer: {out}" in told
    assert "levels named wrongly" in told
    assert all(level in told for level in CERVICAL)
    assert main([*arguments, "--steps", "1", "--folds", "3", "--fold", "2", "--json"]) == 0
    assert LocalizerCard.from_json(json.loads(capsys.readouterr().out)["card"]).held_out == 2
