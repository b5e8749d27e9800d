"""What a model predicts for each study: one label for the patient and one for each level.

A `Targets` is stored in the metadata of a store's tables and in the ``run.json`` of a run, and is
passed to every function that needs the number, the names or the weights of the labels. A store or
a run that names none has those of the competition, `COMPETITION`.

Not here: which levels a localizer can find (`storage_schemas.localizer_card`), and which levels
are cropped (`pipeline.config`).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from storage_schemas.parsing.strict_json import convert, decode
from storage_schemas.vertebrae import CERVICAL, LEVELS

WeightPair = tuple[float, float]
"""The weights of a label's loss where it is negative, and where it is positive."""

# A name becomes a column of tables and part of a row_id.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Targets:
    """The labels of a study, in the order of all label arrays: the patient's, then the levels'.

    Parameters
    ----------
    levels : tuple of str
        Names from `storage_schemas.vertebrae.LEVELS`, from head to feet, at least one.
    patient : str
        Name of the label that says whether any level is positive: letters, digits and ``_``.
    weights : tuple of (float, float)
        Weights in the metric, of the patient and then of each level: that of a negative label and
        that of a positive one; above 0.

    Raises
    ------
    ValueError
        Where a level is unknown, repeated or out of order, or the weights do not fit.
    """

    levels: tuple[str, ...]
    patient: str
    weights: tuple[WeightPair, ...]

    def __post_init__(self) -> None:
        if unknown := [level for level in self.levels if level not in LEVELS]:
            raise ValueError(f"levels are {LEVELS[0]} to {LEVELS[-1]}, not {unknown}")
        if not self.levels or self.levels != tuple(x for x in LEVELS if x in self.levels):
            raise ValueError(f"levels are named once each, from head to feet, not {self.levels}")
        if not _NAME.fullmatch(self.patient) or self.patient in LEVELS:
            raise ValueError(f"{self.patient!r} is no name for the patient's label")
        if len(self.weights) != len(self):
            raise ValueError(f"{len(self.weights)} pairs of weights for {len(self)} labels")
        if bad := [pair for pair in self.weights if not all(0 < w < float("inf") for w in pair)]:
            raise ValueError(f"weights are above 0, not {bad}")

    def __len__(self) -> int:
        """Number of labels: the patient's and one for each level."""
        return 1 + len(self.levels)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the columns of all label arrays."""
        return (self.patient, *self.levels)

    @property
    def negative_weights(self) -> tuple[float, ...]:
        """Weight of each label's loss where the label is 0, in the order of `columns`."""
        return tuple(negative for negative, _ in self.weights)

    @property
    def positive_weights(self) -> tuple[float, ...]:
        """Weight of each label's loss where the label is 1, in the order of `columns`."""
        return tuple(positive for _, positive in self.weights)

    @classmethod
    def of(
        cls,
        levels: Iterable[str],
        patient: str = "patient_overall",
        *,
        level_weights: WeightPair = (1.0, 2.0),
        patient_weights: WeightPair | None = None,
    ) -> "Targets":
        """Return targets with the same weights for all levels.

        Parameters
        ----------
        levels : iterable of str
            Names of the levels, from head to feet.
        patient : str
            Name of the patient's label.
        level_weights : (float, float)
            Weights of each level's loss where it is negative and where it is positive.
        patient_weights : (float, float), optional
            Weights of the patient's loss; by default as much as all levels together, which is what
            the competition chose.
        """
        chosen = tuple(levels)
        negative, positive = level_weights
        whole = patient_weights or (len(chosen) * negative, len(chosen) * positive)
        return cls(chosen, patient, (whole, *(level_weights for _ in chosen)))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        return {
            "levels": list(self.levels),
            "patient": self.patient,
            "weights": {
                name: list(pair) for name, pair in zip(self.columns, self.weights, strict=True)
            },
        }

    @classmethod
    def from_json(cls, document: Any) -> "Targets":
        """Read what `to_json` returned.

        Parameters
        ----------
        document : object
            JSON values, for example
            ``{"levels": ["L1", "L2"], "patient": "any", "weights": {"any": [2, 4], ...}}``.

        Raises
        ------
        ValueError
            On anything else, with the place in the document.
        """
        return cls._of_document(convert(document, _Document))

    @classmethod
    def from_text(cls, text: str | bytes) -> "Targets":
        """Read the JSON text of what `to_json` returned; raises ValueError as `from_json` does."""
        return cls._of_document(decode(text, _Document))

    @classmethod
    def _of_document(cls, found: "_Document") -> "Targets":
        columns = (found.patient, *found.levels)
        if set(found.weights) != set(columns):
            raise ValueError(f"weights are of {sorted(found.weights)}, labels {sorted(columns)}")
        return cls(found.levels, found.patient, tuple(found.weights[name] for name in columns))


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    levels: tuple[str, ...]
    patient: str
    weights: Mapping[str, WeightPair]


COMPETITION = Targets.of(CERVICAL)
"""The eight targets of the RSNA 2022 Cervical Spine Fracture Detection: ``patient_overall`` with
the weights 7 and 14, and C1 to C7 with 1 and 2 each (the competition's evaluation page)."""
