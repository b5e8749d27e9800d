"""The page and the document of one new study."""

import json
import re
from typing import Any

import numpy as np
import pytest

from storage_schemas.vertebrae import LABEL_COLUMNS
from training.explanation.attribution import KeySlice, LevelAttribution
from training.report.study_page import StudyPage, describe, render_page

ORIGINS = {("C2", 4): {"instance": 17, "z_mm": -31.5}}


def key(z: int) -> KeySlice:
    heat = np.zeros((8, 8), np.float32)
    heat[2, 5] = 1
    return KeySlice(z, np.full((8, 8), 90, np.uint8), heat)


def study_page(**changes: Any) -> StudyPage:
    values: dict[str, Any] = {
        "study": "1.2.3",
        "probabilities": (0.9, 0.1, 0.8, 0.02, 0.03, 0.04, 0.05, 0.06),
        "warnings": ("C3 was not found",),
        "attributions": (
            LevelAttribution("C1", (0, 1), (0.5, 0.5), (-2.0, -1.0), (key(0),)),
            LevelAttribution("C2", (3, 4, 5), (0.1, 0.7, 0.2), (-1.0, 2.0, 0.0), (key(4), key(5))),
        ),
        "model": "the sequence model",
    }
    return StudyPage(**(values | changes))


def test_the_document_holds_the_eight_probabilities_and_every_slices_weight() -> None:
    found = json.loads(json.dumps(describe(study_page(), ORIGINS)))
    assert list(found["probabilities"]) == list(LABEL_COLUMNS)
    assert found["probabilities"]["C2"] == 0.8
    assert found["warnings"] == ["C3 was not found"]
    level = found["levels"][1]
    assert (level["level"], level["key_slices"]) == ("C2", [4, 5])
    assert level["slices"][1] == {
        "slice": 4, "instance": 17, "z_mm": -31.5, "weight": 0.7, "logit": 2.0,
    }  # fmt: skip
    assert level["slices"][0]["instance"] is None


def test_the_page_shows_levels_by_probability_with_their_key_slices_twice() -> None:
    page = render_page(study_page(), ORIGINS)
    assert re.findall(r"<h3>(C\d)", page) == ["C2", "C1"]
    assert page.count("data:image/png;base64,") == 2 * 3
    assert "image 17" in page
    assert "weight 0.70" in page
    assert page.count('class="key"') == 3
    for target in LABEL_COLUMNS:
        assert f"<td>{target.removeprefix('patient_')}</td>" in page


def test_the_page_shows_warnings_and_that_it_is_no_medical_device() -> None:
    page = render_page(study_page(), ORIGINS)
    assert "C3 was not found" in page
    assert "not a medical device" in page
    assert "Warning:" not in render_page(study_page(warnings=()), ORIGINS)


def test_the_page_has_no_external_references_and_escapes_its_texts() -> None:
    page = render_page(study_page(study="<script>", warnings=("<b>",)), ORIGINS)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script>" not in page
    assert "<b>" not in page


def test_heat_is_drawn_over_the_picture_and_nowhere_else() -> None:
    page = render_page(study_page(), ORIGINS)
    plain, heated = re.findall(r'src="(data:image/png[^"]+)"', page)[:2]
    assert plain != heated
    cold = LevelAttribution(
        "C1", (0,), (1.0,), (0.0,), (KeySlice(0, key(0).picture, key(0).heat * 0),)
    )
    plain, heated = re.findall(
        r'src="(data:image/png[^"]+)"', render_page(study_page(attributions=(cold,)), ORIGINS)
    )
    assert plain == heated


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, 0.0)])
def test_bars_of_any_weights_can_be_drawn(weights: tuple[float, float]) -> None:
    attribution = LevelAttribution("C1", (0, 1), weights, (0.0, 0.0), (key(0),))
    assert "NaN" not in render_page(study_page(attributions=(attribution,)), {}).replace(
        "nan", "NaN"
    )
