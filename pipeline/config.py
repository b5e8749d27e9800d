"""Settings of a pipeline run: how each study is processed, and which of them change the result.

A field's type states its range and unit, its description stands in the ``Parameters`` section of
its class; flags, configuration files and help are made of both (`presentation.settings`).
"""

import re
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from pipeline.dicom.limits import Limits
from presentation.setting_types import convert, invalid, limits
from presentation.settings import check
from storage_schemas.canonical import sha256_json
from storage_schemas.localizer_card import LOCALIZED_LEVELS
from storage_schemas.targets import COMPETITION
from storage_schemas.vertebrae import LEVELS, MASK_LABELS

RESULT_VERSION = "3"
"""Raised whenever the same input and settings would give another result."""

Layout = Literal["study", "scan"]


@dataclass(frozen=True)
class NetworkFile:
    """The localizer network of a run: small enough to travel with every task.

    Parameters
    ----------
    url : str
        URL of the ONNX file, with its protocol; each process reads it once.
    sha256 : str
        Digest of the file's bytes.
    """

    url: str
    sha256: str


@dataclass(frozen=True)
class StudyConfig:
    """Settings that decide the result of a study; a digest of them is stored in its record.

    Parameters
    ----------
    masks : str or None
        Folder or URL of masks, one ``<study>.nii`` or ``<study>.nii.gz`` for each study.
    mask_labels : str
        Convention by which masks number the vertebrae.
    localizer : NetworkFile or None
        Network that finds the vertebrae of studies without a mask; without one they get no crops.
    locate_by : str
        Another way of finding the vertebrae of studies without a mask, in place of the localizer: a
        name from `pipeline.vertebrae.locate.LOCATORS`; empty for none.
    vertebrae : tuple of str
        Levels to crop, with commas between; by default those of the targets.
    margin_mm : float
        Margin around the mask's extent on all six sides, in mm.
    strict : bool
        Whether to quarantine every study whose geometry is not ``regular``.
    hash_keys : bool
        Whether to store SHA-256 digests of file paths in place of the paths, for sources whose
        paths contain patient names.
    series : str
        Series to read where a study has several: a UID, a series number, or a regular expression
        that is searched in description and kernel; by default the rule chooses.
    max_bad_share : float
        Largest share of refused slices of the stack that is read; a study with more is quarantined.
    limits : Limits
        Budgets of a study, checked before its headers are trusted.
    """

    masks: str | None = None
    mask_labels: str = "rsna"
    localizer: NetworkFile | None = None
    locate_by: str = ""
    vertebrae: tuple[str, ...] = COMPETITION.levels
    margin_mm: Annotated[float, limits("mm", ge=0, le=100)] = 8.0
    strict: bool = False
    hash_keys: bool = False
    series: str = ""
    max_bad_share: Annotated[float, limits("share", ge=0, le=1)] = 0.05
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check(self)
        convert(self.mask_labels, str, "mask_labels", MASK_LABELS)
        for level in self.vertebrae:
            convert(level, str, "vertebrae", LEVELS)
        check_pattern(self.series)
        if self.localizer and self.locate_by:
            raise invalid("locate_by", "a run has a localizer or another way, not both")
        if self.localizer and not set(self.vertebrae) & set(LOCALIZED_LEVELS):
            raise invalid("vertebrae", "the localizer finds C1 to C7, of which none is named")

    def digest(self, *, masked: bool) -> str:
        """Digest of the settings that decide the result of a study with a mask, or without one.

        Masks are identified by content, in a study's inputs, and the localizer by its digest; so a
        localizer that is added later changes no study that was cropped by its mask. Limits count
        where they are not the defaults, so that stores made before limits could be set stay valid.
        """
        if masked:
            locating = {"mask_labels": self.mask_labels}
        else:
            locating = {"localizer": self.localizer.sha256 if self.localizer else ""}
            if self.locate_by:
                locating = {"locate_by": self.locate_by}
        return sha256_json(
            {
                "version": RESULT_VERSION,
                "vertebrae": self.vertebrae,
                "margin_mm": self.margin_mm,
                "strict": self.strict,
                "hash_keys": self.hash_keys,
                "series": self.series,
                "max_bad_share": self.max_bad_share,
            }
            | locating
            | ({} if self.limits == Limits() else {"limits": asdict(self.limits)})
        )


def check_pattern(pattern: str) -> None:
    """Refuse a choice of series that is no regular expression.

    Raises
    ------
    UsageError
        ``config-invalid``.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        why = f"expected a UID, a number or a regular expression, got {pattern!r}: {error}"
        raise invalid("series", why) from None
