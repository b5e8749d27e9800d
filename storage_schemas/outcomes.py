"""Outcomes of an object of the source: stored, unused or refused.

A refused object should have been a slice; its outcome is the kind of a
`storage_schemas.errors.SliceError`, or of the StudyError that refused the whole study. An unused
object is valid, but not part of the stack that was read; its outcome is ``unused:`` and one of
`UNUSED_KINDS`.
"""

from collections.abc import Mapping

STORED = "stored"
"""The outcome of an object whose pixels are in the volume."""

UNUSED = "unused:"
"""What the outcome of an unused object begins with."""

UNUSED_KINDS: Mapping[str, str] = {
    "junk": "a file of an operating system, a file browser or a version control system",
    "other-file": "no DICOM file, but of another format",
    "directory": "a DICOMDIR",
    "document": "a DICOM object without an image, such as a report or a presentation state",
    "other-modality": "an image of another modality, or a segmentation",
    "page": "a page: a secondary capture, a dose page, a colour rendering",
    "scout": "a scout image (localizer radiograph, topogram)",
    "projection": "a projection of slices, such as a MIP; its values are no slice's",
    "tracking": "one of several images at one position, as bolus tracking makes them",
    "not-axial": "a slice of a series that is not axial",
    "other-series": "a slice of another series than the one that is read",
    "other-set": "a slice of another acquisition, phase or reconstruction in the series",
    "overlap": "a slice at positions that the acquisition before shows, too",
    "copy": "an object that is there twice, or a second coding of the same image",
}
"""Kinds of unused objects; they stand in records, so none is renamed or given a new meaning."""


def is_unused(outcome: str) -> bool:
    """Whether an outcome is that of an unused object."""
    return outcome.startswith(UNUSED)


def is_refused(outcome: str) -> bool:
    """Whether an outcome is that of a refused object."""
    return outcome != STORED and not is_unused(outcome)
