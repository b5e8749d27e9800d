"""Which part of the body a series shows, by the words of its header.

Looked for in SeriesDescription, then ProtocolName, then BodyPartExamined: the first of them that
names one region alone decides. BodyPartExamined comes last, since scanners copy it from the
protocol to every series of an examination. The texts themselves are never stored.
"""

import re
from enum import IntEnum
from functools import lru_cache


class Region(IntEnum):
    """Where a series lies; the lower number is read."""

    NECK = 0
    UNKNOWN = 1
    OTHER = 2


_NECK = re.compile(
    r"NECK|CERV|\bC[-_ ]?SP(?:INE|N)?\b|CSPINE|\bC[-_ ]?SPINE|\bHWS\b|\bHALS|\bNACKEN|\bCOLUMNA C"
    r"|RACHIS C|\bC1[-_ ]*(?:C7|T1)|\bCOU\b"
)
_OTHER = re.compile(
    r"HEAD|BRAIN|SKULL|CRANI|KOPF|SCHAEDEL|\bTETE\b|FACE|FACIAL|SINUS|ORBIT|TEMPORAL|MANDIB|MAXILL"
    r"|CHEST|THORAX|THORACIC|LUNG|HEART|CARDIAC|ABDOM|PELVI|LIVER|KIDNEY|HIP\b|KNEE|FOOT|ANKLE|HAND\b"
    r"|WRIST|ELBOW|SHOULDER|LUMBAR|\b[TL][-_ ]?SP(?:INE|N)?\b|[TL]SPINE|\bLWS\b|\bBWS\b|EXTREMIT"
    r"|\bLEG|\bARM\b|FEMUR|SACR|TSPINE|LSPINE"
)


@lru_cache(maxsize=1024)
def find_region(*texts: str) -> Region:
    """The region that the first decisive text names.

    Parameters
    ----------
    *texts : str
        From the one that is trusted most.
    """
    for text in texts:
        upper = text.upper()
        neck, other = bool(_NECK.search(upper)), bool(_OTHER.search(upper))
        if neck != other:
            return Region.NECK if neck else Region.OTHER
    return Region.UNKNOWN
