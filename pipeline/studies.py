"""Which objects of a source are one study: by their folder, or by the UID in each header.

Two layouts: ``study``, where each folder is one study and is named by its StudyInstanceUID, and
``scan``, any tree of files, grouped by the StudyInstanceUID in each header, or by folder where the
header has none.
"""

from concurrent.futures import ThreadPoolExecutor

from pipeline.config import Layout
from pipeline.dicom.headers import read_study_uid
from pipeline.source.listing import HEAD_BYTES, ObjectInfo, StudyListing, list_objects, open_source
from storage_schemas.errors import UsageError
from storage_schemas.objects import REQUESTS, ObjectFolder
from storage_schemas.study_key import StudyKey

_COMPETITION_FOLDER = "train_images"


def list_studies(source: str, layout: Layout = "study") -> list[StudyListing]:
    """List the studies of a source, sorted by key.

    Parameters
    ----------
    source : str
        fsspec URL of a folder of studies (or of the folder above ``train_images``).
    layout : {"study", "scan"}
        Whether folders are studies, or headers say so.

    Raises
    ------
    UsageError
        ``source-not-found`` or ``source-empty``.
    """
    folder = open_source(source)
    if layout == "study" and folder.is_folder(_COMPETITION_FOLDER):
        folder = ObjectFolder(folder.url_of(_COMPETITION_FOLDER))
    objects = list(list_objects(folder))
    if not objects:
        raise UsageError("source-empty", "the folder holds no file", key=source)
    groups = _by_folder(objects, source) if layout == "study" else _by_header(objects, folder)
    root = folder.url_of("")
    return [
        StudyListing(study, root, tuple(sorted(members, key=lambda entry: entry.key)))
        for study, members in sorted(groups.items())
    ]


def guess_layout(source: str) -> Layout:
    """``study`` where folders are named as studies are, else ``scan``."""
    folder = open_source(source)
    if folder.is_folder(_COMPETITION_FOLDER):
        return "study"
    return "study" if any(StudyKey.is_valid(name) for name in folder.children()) else "scan"


def _by_folder(objects: list[ObjectInfo], source: str) -> dict[str, list[ObjectInfo]]:
    """Group by the first folder; files beside the folders form a study without a name."""
    groups: dict[str, list[ObjectInfo]] = {}
    for entry in objects:
        study, _, rest = entry.key.partition("/")
        if rest:
            groups.setdefault(study, []).append(entry)
        elif entry.size:  # an empty one is how some stores mark a folder
            groups.setdefault("", []).append(entry)
    if not groups.keys() - {""}:
        raise UsageError(
            "source-empty", f"{len(objects)} files, but no folder of a study", key=source
        )
    return groups


def _by_header(objects: list[ObjectInfo], folder: ObjectFolder) -> dict[str, list[ObjectInfo]]:
    """Group by the header's study; objects without one form a study of their folder."""

    def study_of(entry: ObjectInfo) -> str:
        try:
            head = folder.get(entry.key, 0, min(entry.size, HEAD_BYTES))
        except OSError:
            head = b""  # whoever wants its pixels will say why
        parent = entry.key.rpartition("/")[0]
        return read_study_uid(head) or StudyKey.from_url(folder.url_of(parent))

    groups: dict[str, list[ObjectInfo]] = {}
    with ThreadPoolExecutor(REQUESTS) as pool:
        for entry, study in zip(objects, pool.map(study_of, objects), strict=True):
            groups.setdefault(study, []).append(entry)
    return groups
