"""The localizer between training and the pipeline: one ONNX file, and the card that it carries.

The file has one input, `INPUT`, float32 (n, 1, S, S, S), plain HU on the overview's axes (z, y,
x), and one output, `OUTPUT`, float32 (n, classes, S, S, S), probabilities that sum to 1 over
`CLASSES`. The caller averages the overview down to S by a whole factor; all other preprocessing
is inside the graph. The card stands in the file's ``metadata_props`` under `METADATA_KEY`, as JSON.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from storage_schemas.canonical import canonical_json, sha256_json
from storage_schemas.errors import StudyError, UsageError
from storage_schemas.study_key import StudyKey
from storage_schemas.vertebrae import CERVICAL

SCHEMA = "cspine-localizer/1"
METADATA_KEY = "cspine"
INPUT, OUTPUT = "overview", "probabilities"
OPSET = 17
"""The ONNX operator set, at least."""
BACKGROUND, OTHER = "background", "other"
LOCALIZED_LEVELS = CERVICAL
"""The levels that a localizer finds, whatever the targets of the store are."""
CLASSES = (BACKGROUND, *LOCALIZED_LEVELS, OTHER)
"""What each channel means; `OTHER` is any vertebra below C7, so that T1 is not taken for it."""
SIZES = (32, 64, 128)
"""Voxels along each side that a localizer may see; each divides the overview's 128."""


@dataclass(frozen=True)
class LevelScore:
    """How well one level was found in studies that the localizer never saw.

    Parameters
    ----------
    vertebrae : int
        That were there to be found.
    dice : float or None
        Mean over them; None where there was none.
    covered : float or None
        Share of them whose box, with its margin, holds at least 95 % of their voxels.
    """

    vertebrae: int
    dice: float | None
    covered: float | None

    def __post_init__(self) -> None:
        if not _whole(self.vertebrae) or self.vertebrae < 0:
            raise ValueError(f"{self.vertebrae!r} vertebrae")
        for value in (self.dice, self.covered):
            if (value is None) != (self.vertebrae == 0) or not (value is None or _share(value)):
                raise ValueError(f"a score of {value!r} over {self.vertebrae} vertebrae")


@dataclass(frozen=True)
class LocalizerCard:
    """What a localizer is, what it learnt from, and how far it may be trusted.

    Parameters
    ----------
    size : int
        Voxels along each side of its input; one of `SIZES`.
    folds : tuple of tuple of StudyKey
        The studies with a mask, in groups that no patient is in two of; each group sorted.
    held_out : int
        The fold that it never saw; it learnt from all others.
    margin_mm : float
        Around a vertebra's extent, where the boxes were measured.
    scores : mapping of str to LevelScore
        For each of C1 to C7, over the held-out fold.
    baseline : mapping of str to LevelScore
        Of a guess that knows no picture: the mean box of the training studies.
    misnamed : int
        Levels found in the held-out fold where another vertebra, or none, lies.
    difference : float
        The largest between the probabilities of the file and of the network that was trained.
    versions : mapping of str to str
        Of the packages that made it.
    classes : tuple of str
        `CLASSES`, in the order of the channels.
    """

    size: int
    folds: tuple[tuple[StudyKey, ...], ...]
    held_out: int
    margin_mm: float
    scores: Mapping[str, LevelScore]
    baseline: Mapping[str, LevelScore]
    misnamed: int
    difference: float
    versions: Mapping[str, str]
    classes: tuple[str, ...] = CLASSES

    def __post_init__(self) -> None:
        studies = [study for fold in self.folds for study in fold]
        if len(studies) != len(set(studies)):
            raise ValueError("a study is in two folds")
        for what, value, holds in (
            ("size", self.size, _whole(self.size) and self.size in SIZES),
            ("classes", self.classes, tuple(self.classes) == CLASSES),
            ("held_out", self.held_out, _whole(self.held_out)),
            ("held_out", self.held_out, 0 <= self.held_out < len(self.folds)),
            ("margin_mm", self.margin_mm, _amount(self.margin_mm)),
            ("misnamed", self.misnamed, _whole(self.misnamed) and self.misnamed >= 0),
            ("difference", self.difference, _amount(self.difference)),
            ("scores", list(self.scores), set(self.scores) == set(LOCALIZED_LEVELS)),
            ("baseline", list(self.baseline), set(self.baseline) == set(LOCALIZED_LEVELS)),
            ("versions", self.versions, all(isinstance(v, str) for v in self.versions.values())),
        ):
            if not holds:
                raise ValueError(f"{what} is {value!r}")
        if not self.training_studies:
            raise ValueError("it learnt from no study")

    @property
    def training_studies(self) -> tuple[StudyKey, ...]:
        """The studies that it learnt from, sorted."""
        learnt = (fold for number, fold in enumerate(self.folds) if number != self.held_out)
        return tuple(sorted(study for fold in learnt for study in fold))

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON values; `from_json` reads it back."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "folds": [list(fold) for fold in self.folds],
            "classes": list(self.classes),
            "training": {
                "studies": len(self.training_studies),
                "sha256": sha256_json(self.training_studies),
            },
        }

    def to_text(self) -> str:
        """The card as the text that the file carries."""
        return canonical_json(self.to_json()).decode()

    @classmethod
    def from_json(cls, document: Any, key: str = "") -> "LocalizerCard":
        """Read and check what `to_json` wrote.

        Parameters
        ----------
        document : object
            Parsed JSON, from anywhere.
        key : str
            The file, for the message.

        Raises
        ------
        UsageError
            ``localizer-invalid`` on a card of another schema, or one that contradicts itself.
        """
        try:
            fields = dict(document)
            if (schema := fields.pop("schema", None)) != SCHEMA:
                raise _invalid(f"its card is of schema {schema!r}, not {SCHEMA!r}", key)
            training = fields.pop("training")
            fields["folds"] = tuple(
                tuple(StudyKey(study) for study in fold) for fold in fields["folds"]
            )
            fields["classes"] = tuple(fields["classes"])
            for name in ("scores", "baseline"):
                fields[name] = {at: LevelScore(**row) for at, row in fields[name].items()}
            card = cls(**fields)
        except (TypeError, ValueError, KeyError, AttributeError, StudyError) as error:
            raise _invalid(f"its card cannot be read: {error}", key) from None
        if training != card.to_json()["training"]:
            raise _invalid("its card's training studies do not have the card's digest", key)
        return card

    @classmethod
    def from_text(cls, text: str, key: str = "") -> "LocalizerCard":
        """Read what `to_text` wrote; raises as `from_json`."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise _invalid("its card is no JSON", key) from None
        return cls.from_json(document, key)


def _invalid(detail: str, key: str) -> UsageError:
    return UsageError("localizer-invalid", detail, key=key)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _amount(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value) and value >= 0


def _share(value: Any) -> bool:
    return _amount(value) and value <= 1
