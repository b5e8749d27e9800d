"""Files that lie beside the studies: masks and tables, found by a path relative to SOURCE.

The competition's archive holds ``train_images``, ``segmentations`` and its csv files side by side,
so that ``--masks segmentations`` means the folder next to the images, wherever one stands.
"""

import re
from collections.abc import Collection
from pathlib import Path

from fsspec.core import split_protocol

from storage_schemas.errors import UsageError
from storage_schemas.objects import ObjectFolder

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)+")


def find_beside(path: str | None, source: str) -> str | None:
    """Return where a file or folder is: as given, else below SOURCE, else beside it.

    Parameters
    ----------
    path : str or None
        Path or URL that the user gave. An absolute path, a URL with a protocol and None are
        returned unchanged.
    source : str
        fsspec URL of the source.

    Raises
    ------
    UsageError
        ``source-not-found`` with the places that were searched.
    """
    if not path or split_protocol(path)[0] or Path(path).is_absolute() or Path(path).exists():
        return path
    base = source.rstrip("/")
    if not split_protocol(source)[0]:
        base = str(Path(source).absolute())
    places = [f"{base}/{path}", f"{base.rpartition('/')[0]}/{path}"]
    for place in places:
        if _exists(place):
            return place
    where = ", ".join([str(Path(path).absolute()), *places])
    raise UsageError("source-not-found", f"there is none of {where}", key=path)


def _exists(url: str) -> bool:
    try:
        return ObjectFolder(url).exists("")
    except (OSError, ValueError, ImportError):
        return False


def check_mask_names(masks: Collection[str], studies: Collection[str], url: str) -> None:
    """Check that masks are named as their studies are, so that none is left aside unseen.

    Masks of studies that the source does not hold are normal where it holds a part of a set.

    Parameters
    ----------
    masks : collection of str
        Names of the mask files, without their suffix.
    studies : collection of str
        Studies of the source.
    url : str
        Folder of the masks, for the message.

    Raises
    ------
    UsageError
        ``mask-unreadable`` where a mask's name holds the UID of a study that has no mask, and
        something else.
    """
    bare = set(studies) - set(masks)
    for name in sorted(set(masks) - set(studies)):
        if named := [study for study in _UID.findall(name) if study in bare]:
            raise UsageError(
                "mask-unreadable",
                f"the mask {name!r} names study {named[0]}, a mask of which is named "
                f"{named[0]}.nii or {named[0]}.nii.gz",
                key=url,
            )
