import ast
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage_schemas.targets import COMPETITION, Targets
from storage_schemas.vertebrae import LUMBAR
from tests.conftest import REPOSITORY


def test_the_competition_has_eight_targets_under_its_own_weights() -> None:
    assert COMPETITION.columns == ("patient_overall", "C1", "C2", "C3", "C4", "C5", "C6", "C7")
    assert len(COMPETITION) == 8
    assert COMPETITION.negative_weights == (7, 1, 1, 1, 1, 1, 1, 1)
    assert COMPETITION.positive_weights == (14, 2, 2, 2, 2, 2, 2, 2)


def test_a_patient_weighs_as_much_as_all_levels_unless_told_otherwise() -> None:
    lumbar = Targets.of(LUMBAR, level_weights=(1, 3))
    assert lumbar.weights[0] == (5, 15)
    assert Targets.of(LUMBAR, patient_weights=(2, 2)).weights[0] == (2, 2)


@pytest.mark.parametrize(
    "targets",
    [
        COMPETITION,
        Targets.of(LUMBAR, "any_fracture"),
        Targets(("T12", "L1"), "fractured", ((0.5, 2.5), (1, 1), (2, 3))),
    ],
)
def test_targets_read_back_equal(targets: Targets) -> None:
    assert Targets.from_json(targets.to_json()) == targets
    assert Targets.from_text(json.dumps(targets.to_json())) == targets


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"levels": ()}, "once each"),
        ({"levels": ("C2", "C1")}, "head to feet"),
        ({"levels": ("C1", "C1")}, "once each"),
        ({"levels": ("C1", "C9")}, "C9"),
        ({"patient": "C3"}, "no name"),
        ({"patient": "any fracture"}, "no name"),
        ({"patient": ""}, "no name"),
        ({"weights": ((1.0, 2.0),)}, "1 pairs of weights for 3"),
        ({"weights": ((1.0, 2.0), (1.0, 0.0), (1.0, 2.0))}, "above 0"),
        ({"weights": ((1.0, 2.0), (1.0, float("nan")), (1.0, 2.0))}, "above 0"),
        ({"weights": ((1.0, 2.0), (1.0, float("inf")), (1.0, 2.0))}, "above 0"),
    ],
)
def test_targets_that_make_no_sense_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(Targets.of(("C1", "C2")), **change)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (3, "object"),
        ({"levels": ["C1"], "patient": "any"}, "weights"),
        ({"levels": ["C1"], "patient": "any", "weights": {"any": [1, 2]}}, "labels"),
        ({"levels": [1], "patient": "any", "weights": {}}, r"\$\.levels\[0\]"),
        ({"levels": ["C1"], "patient": "any", "weights": {"any": [1, 2], "C1": ["1", 2]}}, "float"),
        ({"levels": ["C1"], "patient": "any", "weights": {"any": [1, 2], "C1": [1]}}, "length 2"),
        ({"levels": ["C1"], "patient": "any", "weights": {}, "colour": "red"}, "colour"),
    ],
)
def test_a_document_of_another_kind_is_refused_with_the_place(document: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Targets.from_json(document)
    with pytest.raises(ValueError, match=said):
        Targets.from_text(json.dumps(document))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"levels": ' + b"[" * 100_000,
        b'{"levels": ["C1"], "patient": "any", "weights": {"any": [1, 1e400], "C1": [1, 2]}}',
        b'{"levels": ["C1"], "patient": "any", "weights": {"any": [1, NaN], "C1": [1, 2]}}',
        b'{"levels": ["C1"], "patient": "any", "weights": {"any": [1, ' + b"9" * 5000 + b"]}}",
    ],
)
def test_hostile_text_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any reason will do
        Targets.from_text(text)


COUNT = re.compile(
    r"\((studies|exams|patients|rows|n), [789]\b"  # a shape in a docstring
    r"|\b(tuple|sequence) of [78] floats\b"
    r"|\b(seven|eight) (vertebrae|levels|labels|targets|columns|logits|probabilities)\b"
)


def modules() -> Iterator[Path]:
    for package in ("pipeline", "training", "presentation"):
        yield from (REPOSITORY / package).rglob("*.py")


def test_no_other_package_takes_the_levels_from_anywhere_else() -> None:
    takers = [
        path
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "storage_schemas.vertebrae"
        if {alias.name for alias in node.names} & {"CERVICAL", "THORACIC", "LUMBAR"}
    ]
    assert takers == []


def test_no_other_package_writes_the_number_of_the_levels_or_labels_by_itself() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}: {match[0]}"
        for path in modules()
        for match in COUNT.finditer(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "text", ["ndarray, shape (studies, 8), float64", "tuple of 7 floats", "the eight targets"]
)
def test_a_number_of_labels_would_be_found(text: str) -> None:
    assert COUNT.search(text)
