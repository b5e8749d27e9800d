"""Find the sharpness of a reconstruction kernel from its vendor-specific name.

ConvolutionKernel (0018,1210) is defined by the vendor (PS3.3 C.8.2.1). Bone is read with sharp
kernels, which preserve edges but are noisier. Sources of the table: Siemens Somatom operating
instructions, "Body Kernels" (B10 extremely soft to B80; B50 and sharper for the cervical spine) and
the later two-digit names of the same scale (Br, Bv, Bl, Hr, Qr); GE names its kernels by tissue
(SOFT, STANDARD, DETAIL, BONE, BONEPLUS, EDGE, LUNG); Philips uses letters from smooth to sharp (A,
B standard, C, D detail, E, L lung) and Y-forms of them; Canon numbers body FC01 to FC19, brain FC20
to FC29, bone and inner ear FC30 to FC39, lung FC50 to FC59, high resolution FC80 to FC89.
"""

import re
from enum import IntEnum
from functools import lru_cache


class Sharpness(IntEnum):
    """Sharpness of a kernel; among otherwise equal stacks the lowest value is chosen."""

    SHARP = 0
    MEDIUM = 1
    UNKNOWN = 2
    SOFT = 3


_NAMED = {
    "BONEPLUS": Sharpness.SHARP, "BONE": Sharpness.SHARP, "EDGE": Sharpness.SHARP,
    "HD BONE": Sharpness.SHARP, "HD BONEPLUS": Sharpness.SHARP, "ULTRA": Sharpness.SHARP,
    "SHARP": Sharpness.SHARP, "HIGH": Sharpness.SHARP, "LUNG": Sharpness.SHARP,
    "DETAIL": Sharpness.MEDIUM, "CHST": Sharpness.MEDIUM,
    "STANDARD": Sharpness.SOFT, "STND": Sharpness.SOFT, "STD": Sharpness.SOFT,
    "SOFT": Sharpness.SOFT,
    "BRAIN": Sharpness.SOFT, "SMOOTH": Sharpness.SOFT, "NORMAL": Sharpness.SOFT,
}  # fmt: skip
"""Names of GE and words of other vendors; a prefix NP or HD and a numeric suffix are allowed."""
_PHILIPS = {
    "A": Sharpness.SOFT, "B": Sharpness.SOFT, "EB": Sharpness.SOFT, "UA": Sharpness.SOFT,
    "UB": Sharpness.SOFT, "YA": Sharpness.SOFT, "C": Sharpness.MEDIUM, "UC": Sharpness.MEDIUM,
    "EC": Sharpness.MEDIUM, "YB": Sharpness.MEDIUM, "D": Sharpness.SHARP, "E": Sharpness.SHARP,
    "L": Sharpness.SHARP, "YC": Sharpness.SHARP, "YD": Sharpness.SHARP, "YE": Sharpness.SHARP,
    "YF": Sharpness.SHARP,
}  # fmt: skip
_SIEMENS = re.compile(r"([BHIJSUTDQ])([RVLFCPNEJSUT]?)([0-9]{2})[A-Z]{0,2}")
_CANON = re.compile(r"FC([0-9]{2})(?:[-_ ].*)?")
_SIEMENS_SHARP, _SIEMENS_MEDIUM = 54, 45
"""Lowest numbers of sharp and medium Siemens kernels; one-letter names are sharp from B50."""


@lru_cache(maxsize=256)
def find_sharpness(kernel: str) -> Sharpness:
    """Find the sharpness of a kernel by its name; UNKNOWN if it is in no table.

    Parameters
    ----------
    kernel : str
        ConvolutionKernel as written in the header; only the first of several values is used.
    """
    name = kernel.split("\\")[0].strip().upper()
    if name in _PHILIPS:
        return _PHILIPS[name]
    if canon := _CANON.fullmatch(name):
        return _canon(int(canon[1]))
    if siemens := _SIEMENS.fullmatch(name):
        number, is_old = int(siemens[3]), not siemens[2]
        if number >= (50 if is_old else _SIEMENS_SHARP):
            return Sharpness.SHARP
        return Sharpness.MEDIUM if number >= _SIEMENS_MEDIUM else Sharpness.SOFT
    words = re.sub(r"^(NP|HD)[ _]?", "", re.sub(r"[ _-]?[0-9]*[+]?$", "", name))
    return _NAMED.get(words, _NAMED.get(words.replace(" ", ""), _of_words(name)))


def _canon(number: int) -> Sharpness:
    if 30 <= number <= 39 or 50 <= number <= 59 or 80 <= number <= 89:
        return Sharpness.SHARP
    return Sharpness.SOFT if number < 30 or 40 <= number <= 49 else Sharpness.UNKNOWN


def _of_words(name: str) -> Sharpness:
    """Find the sharpness of names that contain a known word, such as ``BONE SHARP H70``."""
    words = set(re.split(r"[^A-Z]+", name))
    if words & {"BONE", "SHARP", "BONEPLUS", "EDGE"}:
        return Sharpness.SHARP
    return Sharpness.SOFT if words & {"SOFT", "SMOOTH", "STANDARD", "BRAIN"} else Sharpness.UNKNOWN
