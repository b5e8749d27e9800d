"""Several processes train like one: 16 slices per step are 4 times 4, or 2 ranks with 8 each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from storage_schemas.errors import UsageError
from tests.integration import one_step
from training.optimization import trainer

REPOSITORY = Path(__file__).resolve().parents[2]


def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, f"--nproc-per-node={ranks}", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


def gradient(checkpoint: Path) -> dict[str, Tensor]:
    """AdamW's first moment after one step, which is a tenth of the gradient."""
    tensors = load_file(checkpoint)
    return {name: t * 10 for name, t in tensors.items() if name.startswith("exp_avg.")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], float]:
    place = tmp_path_factory.mktemp("whole") / "round.safetensors"
    loss = one_step.train(place, 16, 1)
    return gradient(place), loss


def assert_same_step(
    found: tuple[dict[str, Tensor], float], whole: tuple[dict[str, Tensor], float]
) -> None:
    norm = torch.stack([tensor.square().sum() for tensor in whole[0].values()]).sum().sqrt()
    assert 1e-3 < norm < 0.9, "clipped gradients would hide a wrong scale"
    assert list(found[0]) == list(whole[0])
    for name, tensor in whole[0].items():
        torch.testing.assert_close(found[0][name], tensor, rtol=1e-3, atol=1e-7, msg=name)
    assert found[1] == pytest.approx(whole[1], rel=1e-4)


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 4), (8, 2)])
def test_accumulated_batches_have_the_gradient_of_one_batch(
    tmp_path: Path, whole: tuple[dict[str, Tensor], float], batch: int, accumulation: int
) -> None:
    loss = one_step.train(tmp_path / "round.safetensors", batch, accumulation)
    assert_same_step((gradient(tmp_path / "round.safetensors"), loss), whole)


@pytest.mark.parametrize(("batch", "accumulation"), [(16, 1), (4, 4)])
def test_two_ranks_have_the_gradient_of_one(
    tmp_path: Path, whole: tuple[dict[str, Tensor], float], batch: int, accumulation: int
) -> None:
    place = tmp_path / "round.safetensors"
    script = str(Path(one_step.__file__))
    done = torchrun(2, script, str(place), str(batch), str(accumulation))
    assert done.returncode == 0, done.stderr[-2000:]
    loss = json.loads(place.with_suffix(".json").read_text())
    assert_same_step((gradient(place), loss), whole)


def test_two_ranks_run_the_loop_like_one(
    phantom: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = "--size 32 --patch 8 --width 32 --heads 2 --depth 1 --slices-per-round 60"
    settings += " --rounds 2 --epochs 1 --batch-size 8 --accumulation 2"
    settings += " --guard 0.2 --calibration 0.2 --test 0.2"
    histories = []
    for ranks in (1, 2):
        run = tmp_path / str(ranks)
        command = ["-m", "training.cli", "boost", str(phantom[1]), str(run), *settings.split()]
        done = torchrun(ranks, *command)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count(f"model: {run / 'model'}\n") == 1
        assert done.stdout.count("rounds ") == 1, "one rank prints for all"
        assert not list(run.glob("voxels-*"))
        lines = (run / "rounds.jsonl").read_text().splitlines()
        histories.append([json.loads(line) for line in lines])
    assert [line["round"] for line in histories[1]] == [1, 2]
    for one, two in zip(*histories, strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
        assert two["candidates"] == pytest.approx(one["candidates"], rel=1e-2)


def test_ranks_that_cannot_share_a_step_evenly_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer, "ranks", lambda: 3)
    with pytest.raises(UsageError, match="3 ranks cannot share 16 inputs"):
        trainer._divide(16, 16)


@pytest.mark.parametrize(
    ("ranks", "step", "most", "parts"),
    [(1, 16, 16, 1), (1, 16, 4, 4), (2, 16, 16, 1), (2, 16, 4, 2), (4, 12, 2, 3), (1, 7, 3, 7)],
)
def test_a_ranks_share_of_a_step_is_taken_in_as_few_parts_as_fit(
    monkeypatch: pytest.MonkeyPatch, ranks: int, step: int, most: int, parts: int
) -> None:
    monkeypatch.setattr(trainer, "ranks", lambda: ranks)
    assert trainer._divide(step, most) == parts
