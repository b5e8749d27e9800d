"""What the source holds: studies and their objects, by names and sizes alone.

Two layouts: ``study``, where each folder is one study and is named by its StudyInstanceUID, and
``scan``, any tree of files, grouped by the StudyInstanceUID in each header, or by folder where the
header has none. Not here: what the objects mean (`pipeline.volume`).
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline.config import Layout
from pipeline.headers import read_study_uid
from storage_schemas.canonical import sha256_json
from storage_schemas.errors import RunError, UsageError
from storage_schemas.objects import REQUESTS, ObjectFolder, as_text
from storage_schemas.records import is_study, stand_in_key

HEAD_BYTES = 1 << 16
"""Enough of a file to hold its StudyInstanceUID, as good as always."""
_COMPETITION_FOLDER = "train_images"


@dataclass(frozen=True)
class ObjectInfo:
    """One object of the source.

    Parameters
    ----------
    key : str
        Path below the source's root.
    size : int
        Bytes.
    version : str
        ETag, else modification time: changes when the object does.
    """

    key: str
    size: int
    version: str


@dataclass(frozen=True)
class StudyListing:
    """The objects of one study.

    Parameters
    ----------
    study : str
        The folder's name, or in layout ``scan`` the StudyInstanceUID; not checked yet.
    root : str
        URL below which the objects' keys lie.
    objects : tuple of ObjectInfo
        By key.
    mask : ObjectInfo or None
        The study's label mask; its key is a URL of its own.
    """

    study: str
    root: str
    objects: tuple[ObjectInfo, ...]
    mask: ObjectInfo | None = None

    @property
    def key(self) -> str:
        """The study's key in the store; a stand-in where the folder's name is no UID."""
        return self.study if is_study(self.study) else stand_in_key(f"{self.root}/{self.study}")

    def shown_key(self, key: str, *, hashed: bool) -> str:
        """An object's key as it stands in records: as text, or as a digest of its URL."""
        if not hashed:
            return as_text(key)
        name = f"{self.root}/{key}".encode(errors="surrogateescape")
        return hashlib.sha256(name).hexdigest()[:32]

    @property
    def size(self) -> int:
        """Bytes of all objects, the mask's not counted."""
        return sum(entry.size for entry in self.objects)

    @property
    def sha256(self) -> str:
        """Digest of keys, sizes and versions: what resume compares."""
        entries = [*self.objects, *([self.mask] if self.mask else [])]
        return sha256_json([(entry.key, entry.size, entry.version) for entry in entries])


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
    objects = [_object(key, info) for key, info in _find(folder)]
    if not objects:
        raise UsageError("source-empty", "the folder holds no file", key=source)
    groups = _by_folder(objects, source) if layout == "study" else _by_header(objects, folder)
    root = folder.url_of("")
    return [
        StudyListing(study, root, tuple(sorted(members, key=lambda entry: entry.key)))
        for study, members in sorted(groups.items())
    ]


def _find(folder: ObjectFolder) -> Iterator[tuple[str, dict[str, Any]]]:
    """List all objects; links to folders are followed, those inside such a folder are not."""
    for key, info in folder.find().items():
        if info.get("islink") and folder.is_folder(key):
            yield from folder.find(key).items()
        else:
            yield key, info


def guess_layout(source: str) -> Layout:
    """``study`` where folders are named as studies are, else ``scan``."""
    folder = open_source(source)
    if folder.is_folder(_COMPETITION_FOLDER):
        return "study"
    return "study" if any(is_study(name) for name in folder.children()) else "scan"


def open_source(source: str) -> ObjectFolder:
    """Open a folder that must be there.

    Raises
    ------
    UsageError
        ``source-not-found``, with the store's own reason where it gave one.
    """
    try:
        folder = ObjectFolder(source)
        if folder.is_folder():
            return folder
        reason = "no such folder"
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, ImportError) as error:
        reason = str(error)
    raise UsageError("source-not-found", reason, key=source)


def list_masks(url: str) -> dict[str, ObjectInfo]:
    """List a folder of ``<study>.nii`` or ``<study>.nii.gz`` by study.

    Raises
    ------
    UsageError
        ``source-not-found``, or ``mask-unreadable`` where the folder holds no such file.
    """
    folder = open_source(url)
    masks = {}
    for key, info in folder.find().items():
        name = key.removesuffix(".gz")
        if name.endswith(".nii") and "/" not in name:
            masks[name.removesuffix(".nii")] = _object(key, info, folder.url_of(key))
    if not masks:
        raise UsageError("mask-unreadable", "the folder holds no .nii or .nii.gz", key=url)
    return masks


def fetch(listing: StudyListing) -> Iterator[tuple[str, bytes]]:
    """Fetch a study's objects, several in flight, one request each, in the order of the listing.

    Yields
    ------
    (str, bytes)
        The key, and the object.

    Raises
    ------
    RunError
        ``object-unreadable``, naming the object. It says nothing about the study, which stays to
        be done.
    """
    folder = ObjectFolder(listing.root)
    for key, data in folder.get_all(entry.key for entry in listing.objects):
        if isinstance(data, OSError):
            reason = f"{type(data).__name__}: {data.strerror or data}"
            raise RunError("object-unreadable", reason, key=folder.url_of(key))
        yield key, data


def _object(key: str, info: dict[str, Any], url: str = "") -> ObjectInfo:
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
    return ObjectInfo(url or key, int(info["size"] or 0), str(version or ""))


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
        return read_study_uid(head) or stand_in_key(folder.url_of(entry.key.rpartition("/")[0]))

    groups: dict[str, list[ObjectInfo]] = {}
    with ThreadPoolExecutor(REQUESTS) as pool:
        for entry, study in zip(objects, pool.map(study_of, objects), strict=True):
            groups.setdefault(study, []).append(entry)
    return groups
