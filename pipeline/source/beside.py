"""Find masks and tables by a path relative to SOURCE or to the folder that contains it.

The archive of the competition has ``train_images``, ``segmentations`` and csv files in one folder,
so ``--masks segmentations`` finds the masks from any working directory.
"""

import re
from collections.abc import Collection
from pathlib import Path

from fsspec.core import split_protocol

from storage_schemas.errors import UsageError
from storage_schemas.objects import ObjectFolder

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)+")


def find_beside(path: str | None, source: str) -> str | None:
    """Find a file or folder: as given, else inside SOURCE, else next to it.

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
        ``source-not-found`` with the paths that were searched.
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
    """Check that masks have the names of their studies, so that none is overlooked.

    Masks of studies that are not in the source are normal if it is a part of a data set.

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
        ``mask-unreadable`` where the name of a mask contains the UID of a study without a mask, and
        other text.
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
