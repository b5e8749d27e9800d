"""Group the objects of a source into studies: by their folder, or by the UID in each header.

Two layouts: ``study``, where each folder is one study and is named by its StudyInstanceUID, and
``scan``, any tree of files, grouped by the StudyInstanceUID in each header, or by folder where the
header has none. Files that are no slices (DICOMDIR, CSV, files of operating systems) never form a
study: they are assigned to the study in the same folder, or ignored.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.config import Layout
from pipeline.dicom.headers import read_study_uid
from pipeline.dicom.selection import may_be_slice
from pipeline.source.listing import HEAD_BYTES, ObjectInfo, StudyListing, list_objects, open_source
from pipeline.source.strangers import is_junk
from storage_schemas.errors import UsageError
from storage_schemas.objects import REQUESTS, ObjectFolder
from storage_schemas.study_key import StudyKey

_COMPETITION_FOLDER = "train_images"
Groups = dict[str, list[ObjectInfo]]
Read = Callable[[ObjectInfo], bytes]


@dataclass(frozen=True)
class SourceStudies:
    """The studies of a source.

    Parameters
    ----------
    studies : tuple of StudyListing
        Sorted by key.
    ignored : int
        Number of files that belong to no study and are no slices.
    """

    studies: tuple[StudyListing, ...]
    ignored: int


def list_studies(source: str, layout: Layout = "study") -> list[StudyListing]:
    """List the studies of a source, sorted by key; see `sort_source`."""
    return list(sort_source(source, layout).studies)


def sort_source(source: str, layout: Layout = "study") -> SourceStudies:
    """List the objects of a source and sort them into studies.

    Parameters
    ----------
    source : str
        fsspec URL of a folder of studies (or of the folder above ``train_images``).
    layout : {"study", "scan"}
        Whether studies are grouped by folder or by header.

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

    def read(entry: ObjectInfo) -> bytes:
        try:
            return folder.get(entry.key, 0, min(entry.size, HEAD_BYTES))
        except OSError:
            return b""  # the error is reported when the pixels are read

    sort = _by_folder if layout == "study" else _by_header
    groups = sort(objects, read, folder)
    if not groups:
        why = "no folder of a study" if layout == "study" else "no DICOM object of a study"
        raise UsageError("source-empty", f"{len(objects)} files, but {why}", key=source)
    root = folder.url_of("")
    studies = tuple(
        StudyListing(study, root, tuple(sorted(members, key=lambda entry: entry.key)))
        for study, members in sorted(groups.items())
    )
    return SourceStudies(studies, len(objects) - sum(len(study.objects) for study in studies))


def guess_layout(source: str) -> Layout:
    """Return ``study`` if any folder is named by a UID, else ``scan``."""
    folder = open_source(source)
    if folder.is_folder(_COMPETITION_FOLDER):
        return "study"
    # A number without a dot is more likely a year or a count than a UID.
    named = (name for name in folder.children() if "." in name)
    return "study" if any(StudyKey.is_valid(name) for name in named) else "scan"


def _by_folder(objects: list[ObjectInfo], read: Read, _: ObjectFolder) -> Groups:
    """Group by the first folder; slices outside any folder form a study without a name."""
    groups: Groups = {}
    for entry in objects:
        study, _slash, rest = entry.key.partition("/")
        if not rest:
            study = ""
            if not entry.size or is_junk(entry.key):  # an empty file may mark a folder
                continue
        groups.setdefault(study, []).append(entry)
    if not groups.keys() - {""}:
        return {}
    groups[""] = [e for e in groups.get("", []) if may_be_slice(e.key, read(e))]
    return {
        study: members for study, members in groups.items() if _holds_slices(study, members, read)
    }


def _holds_slices(study: str, members: Iterable[ObjectInfo], read: Read) -> bool:
    """Whether a folder is a study: it is named by a UID, or contains a possible slice."""
    named = [entry for entry in members if not is_junk(entry.key)]
    if StudyKey.is_valid(study) or not study:
        return bool(named)
    return any(may_be_slice(entry.key, read(entry)) for entry in named)


def _by_header(objects: list[ObjectInfo], read: Read, folder: ObjectFolder) -> Groups:
    """Group by the study in the header; objects without one join the study of their folder."""
    groups: Groups = {}
    loose: list[tuple[ObjectInfo, bool]] = []
    homes: dict[str, set[str]] = {}

    def look(entry: ObjectInfo) -> tuple[str | None, bool]:
        if is_junk(entry.key):
            return None, False
        head = read(entry)
        return read_study_uid(head), may_be_slice(entry.key, head)

    with ThreadPoolExecutor(REQUESTS) as pool:
        for entry, (study, is_slice) in zip(objects, pool.map(look, objects), strict=True):
            if study is None:
                loose.append((entry, is_slice))
                continue
            groups.setdefault(study, []).append(entry)
            homes.setdefault(_parent(entry), set()).add(study)
    alone: Groups = {}
    for entry, is_slice in loose:
        home = homes.get(_parent(entry), set())
        if len(home) == 1:
            groups[next(iter(home))].append(entry)
        elif is_slice:
            url = folder.url_of(_parent(entry))
            alone.setdefault(StudyKey.from_url(url), []).append(entry)
    return groups | alone


def _parent(entry: ObjectInfo) -> str:
    return entry.key.rpartition("/")[0]
