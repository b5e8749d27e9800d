"""What the source holds: studies and their objects, by names and sizes alone.

Two layouts: ``study``, where each folder is one study and is named by its StudyInstanceUID, and
``scan``, any tree of files, grouped by the StudyInstanceUID in each header, or by folder where the
header has none. Not here: what the objects mean (`pipeline.volume`).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec

from pipeline.config import Layout
from pipeline.headers import read_study_uid
from storage_schemas.canonical import sha256_json
from storage_schemas.errors import SliceError, UsageError
from storage_schemas.records import storage_key

REQUESTS = 16
"""Objects in flight while a study is fetched."""
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
    fs, root = fsspec.core.url_to_fs(source)
    if not fs.isdir(root):
        raise UsageError("source-not-found", "no such folder", key=source)
    if layout == "study" and fs.isdir(f"{root}/{_COMPETITION_FOLDER}"):
        root = f"{root}/{_COMPETITION_FOLDER}"
    found = fs.find(root, detail=True)
    objects = [_object(name, info, root) for name, info in sorted(found.items())]
    if not objects:
        raise UsageError("source-empty", "the folder holds no file", key=source)
    url = fs.unstrip_protocol(root)
    groups = _by_folder(objects, source) if layout == "study" else _by_header(objects, url)
    return [
        StudyListing(study, url, tuple(sorted(members, key=lambda entry: entry.key)))
        for study, members in sorted(groups.items())
    ]


def list_masks(url: str) -> dict[str, ObjectInfo]:
    """List a folder of ``<study>.nii`` or ``<study>.nii.gz`` by study.

    Raises
    ------
    UsageError
        ``source-not-found``, or ``mask-unreadable`` where the folder holds no such file.
    """
    fs, root = fsspec.core.url_to_fs(url)
    if not fs.isdir(root):
        raise UsageError("source-not-found", "no such folder of masks", key=url)
    masks = {}
    for name, info in sorted(fs.find(root, maxdepth=1, detail=True).items()):
        study = name.rsplit("/", 1)[-1].removesuffix(".gz")
        if study.endswith(".nii"):
            entry = _object(name, info, root)
            masks[study.removesuffix(".nii")] = ObjectInfo(
                f"{fs.unstrip_protocol(root)}/{entry.key}", entry.size, entry.version
            )
    if not masks:
        raise UsageError("mask-unreadable", "the folder holds no .nii or .nii.gz", key=url)
    return masks


def fetch(listing: StudyListing) -> Iterator[tuple[str, bytes | SliceError]]:
    """Fetch a study's objects, several in flight, one request each, in the order of the listing.

    Yields
    ------
    (str, bytes or SliceError)
        The key, and the object or ``object-unreadable`` with the reason.
    """
    fs, root = fsspec.core.url_to_fs(listing.root)

    def get(entry: ObjectInfo) -> tuple[str, bytes | SliceError]:
        try:
            return entry.key, fs.cat_file(f"{root}/{entry.key}")
        except OSError as error:
            reason = type(error).__name__
            return entry.key, SliceError("object-unreadable", reason, key=entry.key)

    with ThreadPoolExecutor(REQUESTS) as pool:
        yield from pool.map(get, listing.objects)


def _object(name: str, info: dict[str, Any], root: str) -> ObjectInfo:
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
    return ObjectInfo(name.removeprefix(f"{root}/"), int(info["size"] or 0), str(version or ""))


def _by_folder(objects: list[ObjectInfo], source: str) -> dict[str, list[ObjectInfo]]:
    groups: dict[str, list[ObjectInfo]] = {}
    for entry in objects:
        study, _, rest = entry.key.partition("/")
        if rest:
            groups.setdefault(study, []).append(entry)
    if not groups:
        raise UsageError(
            "source-empty", f"{len(objects)} files, but no folder of a study", key=source
        )
    return groups


def _by_header(objects: list[ObjectInfo], url: str) -> dict[str, list[ObjectInfo]]:
    """Group by the header's study; objects without one form a study of their folder."""
    fs, root = fsspec.core.url_to_fs(url)

    def study_of(entry: ObjectInfo) -> str:
        head = fs.cat_file(f"{root}/{entry.key}", start=0, end=min(entry.size, HEAD_BYTES))
        return read_study_uid(head) or storage_key(entry.key.rpartition("/")[0] or ".")

    groups: dict[str, list[ObjectInfo]] = {}
    with ThreadPoolExecutor(REQUESTS) as pool:
        for entry, study in zip(objects, pool.map(study_of, objects), strict=True):
            groups.setdefault(study, []).append(entry)
    return groups
