"""The objects of a source: names, sizes and versions, and their bytes.

Not here: which objects are one study (`pipeline.studies`) and what they mean (`pipeline.dicom`).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from storage_schemas.canonical import sha256_json
from storage_schemas.errors import RunError, UsageError, reason_of
from storage_schemas.objects import ObjectFolder, as_text
from storage_schemas.study_key import StudyKey

HEAD_BYTES = 1 << 16
"""Bytes of a file that are read for its header; nearly every CT header fits. A reader that needs
more asks again."""


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
    def key(self) -> StudyKey:
        """The study's key in the store; a stand-in where the folder's name is no UID."""
        if StudyKey.is_valid(self.study):
            return StudyKey(self.study)
        return StudyKey.from_url(f"{self.root}/{self.study}")

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


def list_objects(folder: ObjectFolder) -> Iterator[ObjectInfo]:
    """List all objects; links to folders are followed, those inside such a folder are not."""
    for key, info in folder.find().items():
        if info.get("islink") and folder.is_folder(key):
            yield from (_object(*found) for found in folder.find(key).items())
        else:
            yield _object(key, info)


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
    except (OSError, ValueError, ImportError) as error:
        reason = reason_of(error)
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
            raise RunError("object-unreadable", reason_of(data), key=folder.url_of(key))
        yield key, data


def _object(key: str, info: dict[str, Any], url: str = "") -> ObjectInfo:
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
    return ObjectInfo(url or key, int(info["size"] or 0), str(version or ""))
