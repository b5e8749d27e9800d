from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.cohorts import make_buffer, make_vertebra
from training.config import InputConfig
from training.data.cohort import Study
from training.data.inputs import index_slices
from training.models.slice_scoring import score_studies, slice_logits

INPUTS = InputConfig(
    size=8, crop_mm=8, windows=((0, 1000),), mean=(0, 0, 0), std=(1, 1, 1), trim_mm=0
)


class Brightness(torch.nn.Module):
    """Its logit is the mean HU of the middle channel."""

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=1000 * pixel_values[:, 1].mean(dim=(1, 2))[:, None])


MODEL = cast(PreTrainedModel, Brightness())


def make_crop(study: str, level: str, logits: Sequence[int], mm: float = 1.0) -> Any:
    """A crop each of whose slices has one value, which is its logit."""
    shape = (len(logits), 12, 12)
    hu = np.broadcast_to(np.array(logits)[:, None, None], shape)
    return make_vertebra(shape, (mm, 1.0, 1.0), study=study, level=level), hu


def make_study(study: str, crops: Sequence[Any]) -> Study:
    mine = tuple(vertebra for vertebra, _ in crops if vertebra.study == study)
    return Study(study, study, "", None, mine)


@pytest.mark.parametrize(
    ("logits", "score", "peak"),
    [
        ([100, 900, 200, 800, 300, 700, 400], (900 + 800 + 700 + 400 + 300) / 5, 1),
        ([10, 20, 30, 40, 500], 120, 4),
        ([10, 20, 60], 30, 2),
        ([7], 7, 0),
        ([50] * 9, 50, 0),
    ],
)
def test_a_vertebras_score_is_the_mean_of_its_five_largest_logits(
    logits: list[int], score: float, peak: int
) -> None:
    crops = [make_crop("1.1", "C4", logits)]
    found = score_studies(MODEL, INPUTS, make_buffer(*crops), [make_study("1.1", crops)])
    assert found.score[0, 3] == pytest.approx(score, abs=0.01)
    assert found.peak[0, 3] == peak


def test_trimmed_slices_do_not_score_and_the_peak_counts_from_the_crops_first_slice() -> None:
    crops = [make_crop("1.1", "C1", [900, 10, 20, 30, 900], mm=2.0)]
    inputs = InputConfig(**{**INPUTS.__dict__, "trim_mm": 3.0})
    found = score_studies(MODEL, inputs, make_buffer(*crops), [make_study("1.1", crops)])
    assert found.score[0, 0] == pytest.approx(20, abs=0.01)
    assert found.peak[0, 0] == 3


def test_scores_stand_at_their_study_and_level_and_missing_crops_have_none() -> None:
    crops = [
        make_crop("1.2", "C7", [70]),
        make_crop("1.1", "C2", [20]),
        make_crop("1.3", "C1", [99]),
        make_crop("1.1", "C1", [10]),
    ]
    studies = [make_study(name, crops) for name in ("1.1", "1.2", "1.4")]
    found = score_studies(MODEL, INPUTS, make_buffer(*crops), studies)
    expected = np.full((3, 7), np.nan)
    expected[0, :2], expected[1, 6] = (10, 20), 70
    np.testing.assert_allclose(found.score, expected, atol=0.01)
    assert ((found.peak == -1) == np.isnan(expected)).all()


def test_logits_come_in_the_order_of_the_index_over_many_batches() -> None:
    crops = [make_crop("1.1", "C1", range(150)), make_crop("1.1", "C2", range(500, 530))]
    buffer = make_buffer(*crops)
    index = index_slices(buffer, [1, 0], 0)
    found = slice_logits(MODEL, INPUTS, buffer, index)
    np.testing.assert_allclose(found, [*range(500, 530), *range(150)], atol=0.01)


def test_no_inputs_give_no_logits() -> None:
    buffer = make_buffer(make_crop("1.1", "C1", [1]))
    assert slice_logits(MODEL, INPUTS, buffer, index_slices(buffer, [], 0)).shape == (0,)
