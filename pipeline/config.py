"""What the user may set for a run, checked once, and which of it changes the result."""

from dataclasses import dataclass
from typing import Literal

from storage_schemas.canonical import sha256_json
from storage_schemas.errors import UsageError
from storage_schemas.localizer_card import LOCALIZED_LEVELS
from storage_schemas.targets import COMPETITION
from storage_schemas.vertebrae import LEVELS, MASK_LABELS

RESULT_VERSION = "2"
"""Raised whenever the same input and settings would give another result."""

Layout = Literal["study", "scan"]


@dataclass(frozen=True)
class NetworkFile:
    """Which network a run uses: small enough to travel with every task.

    Parameters
    ----------
    url : str
        Of the ONNX file, with its protocol; each process reads it once.
    sha256 : str
        Of its bytes.
    """

    url: str
    sha256: str


@dataclass(frozen=True)
class StudyConfig:
    """The settings that decide what comes out of a study; a digest of them stands in its record.

    Parameters
    ----------
    masks : str or None
        URL of a folder of ``<study>.nii`` or ``<study>.nii.gz``.
    mask_labels : str
        How the masks number the vertebrae, from `storage_schemas.vertebrae.MASK_LABELS`.
    localizer : NetworkFile or None
        What finds the vertebrae of studies without a mask; where it is None they get no crops.
    vertebrae : tuple of str
        The levels to crop.
    margin_mm : float
        Around the mask's extent, on all six sides.
    strict : bool
        Whether to quarantine every study whose geometry is not ``regular``.
    hash_keys : bool
        Whether objects stand in records and tables under a digest of their key, for buckets whose
        file names hold names.
    max_bad_share : float
        A study with a larger share of refused objects goes to quarantine as a whole.
    """

    masks: str | None = None
    mask_labels: str = "rsna"
    localizer: NetworkFile | None = None
    vertebrae: tuple[str, ...] = COMPETITION.levels
    margin_mm: float = 8.0
    strict: bool = False
    hash_keys: bool = False
    max_bad_share: float = 0.05

    def __post_init__(self) -> None:
        if self.mask_labels not in MASK_LABELS:
            raise UsageError(
                "config-invalid", f"--mask-labels {self.mask_labels}: not in {sorted(MASK_LABELS)}"
            )
        if unknown := set(self.vertebrae) - set(LEVELS):
            raise UsageError("config-invalid", f"--vertebrae {sorted(unknown)}: no such levels")
        if not 0 <= self.margin_mm <= 100:
            raise UsageError("config-invalid", f"--margin {self.margin_mm} mm: not in 0 to 100")
        if self.localizer and not set(self.vertebrae) & set(LOCALIZED_LEVELS):
            raise UsageError(
                "config-invalid", "--localizer finds C1 to C7, --vertebrae asks for none"
            )

    def digest(self, *, masked: bool) -> str:
        """Digest of the settings that decide over a study with a mask, or over one without.

        The masks count by content, in a study's inputs, and the localizer by its digest; so a
        localizer that comes later touches no study that was cropped by its mask.
        """
        if masked:
            locating = {"mask_labels": self.mask_labels}
        else:
            locating = {"localizer": self.localizer.sha256 if self.localizer else ""}
        return sha256_json(
            {
                "version": RESULT_VERSION,
                "vertebrae": self.vertebrae,
                "margin_mm": self.margin_mm,
                "strict": self.strict,
                "hash_keys": self.hash_keys,
                "max_bad_share": self.max_bad_share,
            }
            | locating
        )
