"""The contract of a localizer: one ONNX file, and the card that describes it.

A localizer is a network that finds the vertebrae C1 to C7 in the overview of a study. Its file has
one input, `INPUT`, float32 (n, 1, S, S, S), HU on the overview's axes (z, y, x), and one output,
`OUTPUT`, float32 (n, classes, S, S, S), probabilities that sum to 1 over `CLASSES`. The caller
averages the overview down to S by a whole factor; all other preprocessing is inside the graph. The
card is JSON in the file's ``metadata_props``, under `METADATA_KEY`.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import msgspec

from storage_schemas.canonical import canonical_json, sha256_json
from storage_schemas.errors import UsageError
from storage_schemas.parsing.strict_json import convert, parse
from storage_schemas.study_key import StudyKey
from storage_schemas.vertebrae import CERVICAL

SCHEMA = "cspine-localizer/1"
METADATA_KEY = "cspine"
INPUT, OUTPUT = "overview", "probabilities"
OPSET = 17
"""Least version of the ONNX operator set."""
BACKGROUND, OTHER = "background", "other"
LOCALIZED_LEVELS = CERVICAL
"""Levels that a localizer finds, whatever the targets of the store are."""
CLASSES = (BACKGROUND, *LOCALIZED_LEVELS, OTHER)
"""Meaning of each output channel; `OTHER` is any vertebra below C7, so that T1 is not named C7."""
SIZES = (32, 64, 128)
"""Numbers of voxels along each side of the input; each divides the overview's 128."""


@dataclass(frozen=True)
class LevelScore:
    """How well one level was found in studies that the network was not trained on.

    Parameters
    ----------
    vertebrae : int
        Number of vertebrae of this level in those studies.
    dice : float or None
        Mean Dice coefficient over them; None where there are none.
    covered : float or None
        Share of them whose box, with its margin, holds at least 95 % of their voxels.
    """

    vertebrae: int
    dice: float | None
    covered: float | None

    def __post_init__(self) -> None:
        if self.vertebrae < 0:
            raise ValueError(f"{self.vertebrae} vertebrae")
        for value in (self.dice, self.covered):
            if (value is None) != (self.vertebrae == 0) or not (value is None or 0 <= value <= 1):
                raise ValueError(f"a score of {value!r} over {self.vertebrae} vertebrae")


@dataclass(frozen=True)
class LocalizerCard:
    """Input size, training studies and measured accuracy of a localizer.

    Parameters
    ----------
    size : int
        Number of voxels along each side of the input; one of `SIZES`.
    folds : tuple of tuple of StudyKey
        All studies with a mask, in folds that share no patient; each fold sorted.
    held_out : int
        Index of the fold that the network was validated on; it was trained on all others.
    margin_mm : float
        Margin around a vertebra's extent with which `LevelScore.covered` was measured.
    scores : mapping of str to LevelScore
        Accuracy for each of `LOCALIZED_LEVELS`, on the held-out fold.
    baseline : mapping of str to LevelScore
        Accuracy of an image-independent baseline: the mean box of the training studies.
    misnamed : int
        Number of levels found in the held-out fold where another vertebra lies, or none.
    difference : float
        Largest difference between the probabilities of the ONNX file and of the trained network.
    versions : mapping of str to str
        Versions of the packages that trained and exported it.
    classes : tuple of str
        `CLASSES`, in the order of the channels.

    Raises
    ------
    ValueError
        Where a value is out of range or the folds overlap.
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
        counts = Counter(study for fold in self.folds for study in fold)
        if any(count > 1 for count in counts.values()):
            raise ValueError("a study is in two folds")
        for what, value, holds in (
            ("size", self.size, self.size in SIZES),
            ("classes", self.classes, self.classes == CLASSES),
            ("held_out", self.held_out, 0 <= self.held_out < len(self.folds)),
            ("margin_mm", self.margin_mm, _is_amount(self.margin_mm)),
            ("misnamed", self.misnamed, self.misnamed >= 0),
            ("difference", self.difference, _is_amount(self.difference)),
            ("scores", list(self.scores), set(self.scores) == set(LOCALIZED_LEVELS)),
            ("baseline", list(self.baseline), set(self.baseline) == set(LOCALIZED_LEVELS)),
        ):
            if not holds:
                raise ValueError(f"{what} is {value!r}")
        if not self.training_studies:
            raise ValueError("it was trained on no study")

    @property
    def training_studies(self) -> tuple[StudyKey, ...]:
        """Studies that the network was trained on, sorted."""
        others = (fold for number, fold in enumerate(self.folds) if number != self.held_out)
        return tuple(sorted(study for fold in others for study in fold))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "folds": [list(fold) for fold in self.folds],
            "classes": list(self.classes),
            "training": asdict(self._training),
        }

    def to_text(self) -> str:
        """Return the JSON text that the ONNX file carries; `from_text` reads it back."""
        return canonical_json(self.to_json()).decode()

    @classmethod
    def from_json(cls, document: Any, key: str = "") -> "LocalizerCard":
        """Read and check what `to_json` returned.

        Parameters
        ----------
        document : object
            Parsed JSON.
        key : str
            The file, for the message.

        Raises
        ------
        UsageError
            ``localizer-invalid`` on a card of another schema, or one that contradicts itself.
        """
        try:
            schema = convert(document, _Schema).schema
            if schema != SCHEMA:
                raise _invalid(f"its card is of schema {schema!r}, not {SCHEMA!r}", key)
            found = convert(document, _Document)
            card = cls(**{field.name: getattr(found, field.name) for field in fields(cls)})
        except ValueError as error:
            raise _invalid(f"its card cannot be read: {error}", key) from None
        if found.training != card._training:
            raise _invalid("its card's training studies do not have the card's digest", key)
        return card

    @classmethod
    def from_text(cls, text: str, key: str = "") -> "LocalizerCard":
        """Read what `to_text` returned; raises as `from_json`."""
        try:
            document = parse(text)
        except ValueError as error:
            raise _invalid(f"its card is no JSON: {error}", key) from None
        return cls.from_json(document, key)

    @property
    def _training(self) -> "_Training":
        studies = self.training_studies
        return _Training(len(studies), sha256_json(studies))


@dataclass(frozen=True)
class _Training:
    """Number and digest of the training studies, which a reader compares with the folds."""

    studies: int
    sha256: str


class _Schema(msgspec.Struct):
    """What every version of a card has."""

    schema: Any = None


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    """A card as it is written: the fields of `LocalizerCard` and two more."""

    schema: str
    size: int
    folds: tuple[tuple[StudyKey, ...], ...]
    held_out: int
    margin_mm: float
    scores: dict[str, LevelScore]
    baseline: dict[str, LevelScore]
    misnamed: int
    difference: float
    versions: dict[str, str]
    classes: tuple[str, ...]
    training: _Training


def _invalid(detail: str, key: str) -> UsageError:
    return UsageError("localizer-invalid", detail, key=key)


def _is_amount(value: float) -> bool:
    return math.isfinite(value) and value >= 0
