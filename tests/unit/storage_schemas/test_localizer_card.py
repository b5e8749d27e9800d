"""The card of a localizer is a contract: what training writes is what the pipeline trusts."""

import json
from typing import Any

import pytest

from storage_schemas.errors import UsageError
from storage_schemas.localizer_card import CLASSES, LOCALIZED_LEVELS, LevelScore, LocalizerCard


def make_card(**changes: Any) -> LocalizerCard:
    found = {level: LevelScore(4, 0.9, 1.0) for level in LOCALIZED_LEVELS}
    values: dict[str, Any] = {
        "size": 64,
        "folds": (("1.2.1", "1.2.2"), ("1.2.3", "1.2.4"), ("1.2.5",)),
        "held_out": 1,
        "margin_mm": 8.0,
        "scores": found,
        "baseline": found | {"C7": LevelScore(0, None, None)},
        "misnamed": 0,
        "difference": 1e-6,
        "versions": {"torch": "2.13.0"},
    }
    return LocalizerCard(**values | changes)


def test_a_card_comes_back_from_its_text() -> None:
    card = make_card()
    assert LocalizerCard.from_text(card.to_text()) == card


def test_a_card_learnt_from_all_folds_but_the_held_out_one() -> None:
    assert make_card().training_studies == ("1.2.1", "1.2.2", "1.2.5")
    assert make_card().to_json()["training"]["studies"] == 3


def test_channels_are_background_then_c1_to_c7_then_other_vertebrae() -> None:
    assert CLASSES == ("background", "C1", "C2", "C3", "C4", "C5", "C6", "C7", "other")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": "cspine-localizer/9"}, "schema"),
        ({"size": 96}, "size"),
        ({"size": 64.0}, "size"),
        ({"size": True}, "size"),
        ({"classes": ["background", *reversed(LOCALIZED_LEVELS), "other"]}, "classes"),
        ({"held_out": 3}, "held_out"),
        ({"folds": [["1.2.1"], ["1.2.1"]]}, "two folds"),
        ({"folds": [["../etc"], ["1.2.1"]]}, "UID"),
        ({"folds": [[], ["1.2.1"]]}, "no study"),
        ({"folds": [["1.2.1", "1.2.9"], ["1.2.3"]]}, "digest"),
        ({"folds": 7}, r"\$\.folds"),
        ({"folds": [["1.2.1", 2]]}, r"\$\.folds\[0\]\[1\]"),
        ({"size": 10**30}, "size"),
        ({"training": {"studies": "3", "sha256": ""}}, r"\$\.training\.studies"),
        ({"margin_mm": -1}, "margin_mm"),
        ({"difference": float("nan")}, "difference"),
        ({"misnamed": -1}, "misnamed"),
        ({"scores": {}}, "scores"),
        ({"scores": {"C1": {"vertebrae": 3, "dice": None, "covered": 1.0}}}, "score"),
        ({"scores": {"C1": {"vertebrae": 3, "dice": 1.2, "covered": 1.0}}}, "score"),
        ({"scores": ["C1"]}, "cannot be read"),
        ({"versions": {"torch": 2}}, "versions"),
        ({"spare": 1}, "spare"),
    ],
)
def test_a_card_that_is_wrong_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    document = json.loads(make_card().to_text()) | changes
    with pytest.raises(UsageError, match=said) as refused:
        LocalizerCard.from_json(document, "model.onnx")
    assert refused.value.kind == "localizer-invalid"
    assert str(refused.value).startswith("model.onnx: ")


@pytest.mark.parametrize("missing", ["schema", "size", "folds", "training", "scores", "versions"])
def test_a_card_with_a_field_missing_is_refused(missing: str) -> None:
    document = make_card().to_json()
    del document[missing]
    with pytest.raises(UsageError, match=missing):
        LocalizerCard.from_json(document)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[1, 2]",
        "null",
        "[" * 100_000,
        '{"schema": ' + "[" * 100_000,
        "\ud800",
        '{"schema": 1e400}',
        '{"schema": NaN}',
    ],
)
def test_text_that_is_no_card_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="card"):
        LocalizerCard.from_text(text)
