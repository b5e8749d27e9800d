"""Find the body region of a series by the words in its header.

SeriesDescription, ProtocolName and BodyPartExamined are searched in this order; the first that
names exactly one region is used. BodyPartExamined comes last, since scanners copy it from the
protocol to every series of an examination. The texts are never stored.
"""

import re
from enum import IntEnum
from functools import lru_cache


class Region(IntEnum):
    """Body region of a series; the lowest value is preferred."""

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
    """Return the region named by the first unambiguous text.

    Parameters
    ----------
    *texts : str
        Header texts, the most reliable first.
    """
    for text in texts:
        upper = text.upper()
        neck, other = bool(_NECK.search(upper)), bool(_OTHER.search(upper))
        if neck != other:
            return Region.NECK if neck else Region.OTHER
    return Region.UNKNOWN
