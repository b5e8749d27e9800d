"""List the objects of a source with their sizes and versions, and fetch their bytes.

Not here: grouping objects into studies (`pipeline.studies`), and parsing them (`pipeline.dicom`).
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
"""Bytes of a file that are read for its header, enough for nearly every CT header."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object of the source.

    Parameters
    ----------
    key : str
        Path relative to the root of the source.
    size : int
        Size in bytes.
    version : str
        ETag, or else the modification time; it changes when the object changes.
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
        Name of the folder, or StudyInstanceUID with layout ``scan``; it is not validated yet.
    root : str
        URL that the keys of the objects are relative to.
    objects : tuple of ObjectInfo
        Objects of the study, sorted by key.
    mask : ObjectInfo or None
        Label mask of the study; its key is a complete URL.
    """

    study: str
    root: str
    objects: tuple[ObjectInfo, ...]
    mask: ObjectInfo | None = None
    series: str = ""

    @property
    def key(self) -> StudyKey:
        """Key of the study in the store, made from the URL where the folder's name is no UID."""
        if StudyKey.is_valid(self.study):
            return StudyKey(self.study)
        return StudyKey.from_url(f"{self.root}/{self.study}")

    def shown_key(self, key: str, *, hashed: bool) -> str:
        """Key of an object as records have it: its text, or the digest of its URL if `hashed`."""
        if not hashed:
            return as_text(key)
        name = f"{self.root}/{key}".encode(errors="surrogateescape")
        return hashlib.sha256(name).hexdigest()[:32]

    @property
    def size(self) -> int:
        """Total size of the objects in bytes, without the mask."""
        return sum(entry.size for entry in self.objects)

    @property
    def sha256(self) -> str:
        """Digest of the keys, sizes and versions; a changed digest makes a run redo the study."""
        entries = [*self.objects, *([self.mask] if self.mask else [])]
        named = [self.series] if self.series else []
        return sha256_json([*((e.key, e.size, e.version) for e in entries), *named])


def list_objects(folder: ObjectFolder) -> Iterator[ObjectInfo]:
    """List all objects of a folder.

    Symbolic links to folders are followed, except inside a folder that is a link itself.
    """
    for key, info in folder.find().items():
        if info.get("islink") and folder.is_folder(key):
            yield from (_object(*found) for found in folder.find(key).items())
        else:
            yield _object(key, info)


def open_source(source: str) -> ObjectFolder:
    """Open the folder of a source.

    Parameters
    ----------
    source : str
        Folder, or any fsspec URL.

    Raises
    ------
    UsageError
        ``source-not-found`` where the folder does not exist or cannot be read.
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
    """List the label masks in a folder.

    Parameters
    ----------
    url : str
        Folder, or any fsspec URL, of ``<study>.nii`` or ``<study>.nii.gz``.

    Returns
    -------
    dict of str to ObjectInfo
        Masks by study; their keys are complete URLs.

    Headers of .hdr/.img pairs are listed as well, where the study has no other mask: reading one
    says that the pair must be saved as one file.

    Raises
    ------
    UsageError
        ``source-not-found``, or ``mask-unreadable`` where the folder has no such file.
    """
    folder = open_source(url)
    masks: dict[str, ObjectInfo] = {}
    pairs: dict[str, ObjectInfo] = {}
    found = folder.find()
    for key, info in found.items():
        if "/" in key or key.startswith("."):
            continue
        name = key[:-3] if key.lower().endswith(".gz") else key
        listed = {".nii": masks, ".hdr": pairs}.get(name[-4:].lower())
        if listed is not None:
            listed[name[:-4]] = _object(key, info, folder.url_of(key))
    if not masks | pairs:
        shown = ", ".join(list(found)[:3]) or "nothing"
        raise UsageError(
            "mask-unreadable", f"the folder holds no .nii or .nii.gz, but {shown}", key=url
        )
    return pairs | masks


def fetch(listing: StudyListing) -> Iterator[tuple[str, bytes]]:
    """Fetch the objects of a study with concurrent requests, one per object.

    Parameters
    ----------
    listing : StudyListing
        Study to fetch.

    Yields
    ------
    (str, bytes)
        Key and content of each object, in the order of the listing.

    Raises
    ------
    RunError
        ``object-unreadable`` with the URL of the object. The study is not quarantined, so the next
        run tries it again.
    """
    folder = ObjectFolder(listing.root)
    for key, data in folder.get_all(entry.key for entry in listing.objects):
        if isinstance(data, OSError):
            raise RunError("object-unreadable", reason_of(data), key=folder.url_of(key))
        yield key, data


def _object(key: str, info: dict[str, Any], url: str = "") -> ObjectInfo:
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
    return ObjectInfo(url or key, int(info["size"] or 0), str(version or ""))
