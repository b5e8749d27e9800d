"""Classify images by their header: original slice, reformat, projection, scout.

ImageType (PS3.3 C.7.6.1.1.2 and C.8.2.1.1.1; enhanced CT: C.8.16.1) is ORIGINAL or DERIVED, then
PRIMARY or SECONDARY, then AXIAL or LOCALIZER; vendors add further values. SeriesDescription, which
is free text, is used only if ImageType has no third value, or if it names a projection.
"""

import re
from enum import IntEnum
from functools import lru_cache


class Origin(IntEnum):
    """Origin of an image, in order of preference; the last ones are never slices of a volume."""

    ORIGINAL = 0
    DERIVED = 1
    REFORMAT = 2
    PROJECTION = 3
    TRACKING = 4
    SCOUT = 5
    PAGE = 6


_WORDS = {
    Origin.SCOUT: "LOCALIZER LOCALISER SCOUT TOPOGRAM TOPO SURVIEW SCANOGRAM",
    Origin.PAGE: (
        "SCREEN SCREENSAVE SCREENSHOT CAPTURE SNAPSHOT DOSE DOSEINFO PROTOCOL PROT REPORT"
        " PATIENTPROTOCOL GRAPHIC RGB COLOR KEYIMAGE PAGE"
    ),
    Origin.TRACKING: (
        "MONITORING PREMONITORING PREMONI MONI BOLUS TRACKING SMARTPREP SURESTART TESTBOLUS FLUORO"
        " TIMING"
    ),
    Origin.PROJECTION: (
        "MIP MINIP MAXIP MNIP TMIP TMAXIP MAXIMUM MINIMUM VRT VR SSD SVR RENDER RENDERED RENDERING"
        " VOLREN SURFACE ENDOSCOPY RAYSUM THRESHOLD SUBTRACTION FUSION PERFUSION PROJECTION 3D"
    ),
    Origin.REFORMAT: (
        "MPR CPR REFORMATTED REFORMAT REFORMATION OBLIQUE CURVED COR CORONAL SAG SAGITTAL RESAMPLED"
        " RESLICED PARALLEL PLANAR MULTIPLANAR AVERAGE AVG MEAN CSAPARALLEL CSAMPR"
    ),
}
"""Words of ImageType by origin; the first origin with a matching word is used."""
_KNOWN = {origin: frozenset(words.split()) for origin, words in _WORDS.items()}
_JOINED = {
    "MAX_IP": "MAXIP",
    "MIN_IP": "MINIP",
    "MAX IP": "MAXIP",
    "MIN IP": "MINIP",
    "TEST BOLUS": "TESTBOLUS",
    "TEST_BOLUS": "TESTBOLUS",
    "DOSE_INFO": "DOSEINFO",
}
_INTENDED = re.compile(r"\b(FOR|BASE|BASIS|FUER|F\.|PRE|3D)\b")
"""Words in descriptions of slices that are the input of a projection."""
_SPLIT = re.compile(r"[^A-Z0-9]+")


@lru_cache(maxsize=1024)
def find_origin(image_type: str, description: str = "") -> Origin:
    """Find the origin of an image.

    Parameters
    ----------
    image_type : str
        ImageType or FrameType as written in the header, values joined by a backslash.
    description : str, optional
        SeriesDescription.
    """
    values = [value.strip().upper() for value in image_type.split("\\")]
    special = _find_word(" ".join(values[2:]))
    if special is not None:
        return special
    # A description may not be about the slices themselves, so it only makes them a reformat.
    described = _find_word(description.upper())
    if described is not None and (len(values) < 3 or not values[2]):
        return Origin.REFORMAT
    if described is Origin.PROJECTION and not _INTENDED.search(description.upper()):
        return Origin.REFORMAT
    return Origin.DERIVED if values[0] == "DERIVED" else Origin.ORIGINAL


def _find_word(text: str) -> Origin | None:
    for written, joined in _JOINED.items():
        text = text.replace(written, joined)
    words = {word for word in _SPLIT.split(text) if word}
    return next((origin for origin, known in _KNOWN.items() if words & known), None)
