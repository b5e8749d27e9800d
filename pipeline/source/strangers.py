"""Recognise files that are not DICOM, by their names or their first bytes.

A damaged slice is not such a file: a file with the name of a DICOM file, or a binary file of no
format known here, may be one, and is refused when it is read. Not here: the content of DICOM
objects (`pipeline.dicom.selection`).
"""

from pathlib import PurePosixPath

_JUNK_FOLDERS = frozenset({
    "__MACOSX", ".git", ".svn", ".hg", ".AppleDouble", ".Trashes", ".Spotlight-V100", ".fseventsd",
    ".TemporaryItems", ".ipynb_checkpoints", "__pycache__", "$RECYCLE.BIN", "@eaDir", ".dvc",
    "System Volume Information", "lost+found", ".cache",
})  # fmt: skip
_JUNK_NAMES = frozenset({
    ".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "autorun.inf", "icon\r", ".directory",
    ".gitignore", ".gitattributes", ".gitkeep", ".keep", ".nojekyll", ".localized", "_success",
    ".apdisk", ".volumeicon.icns", "indexervolumeguid",
})  # fmt: skip
_JUNK_BEGINNINGS = ("._", ".nfs", "~$", ".fuse_hidden", ".goutputstream")
_JUNK_ENDINGS = ("~", ".swp", ".part", ".crdownload", ".lnk", ".lock")

_SLICE_ENDINGS = frozenset({".dcm", ".dicom", ".dic", ".ima", ".dc3"})
_FORMATS = {
    "gzip": (".gz", ".tgz"), "zip": (".zip",), "bzip2": (".bz2",), "xz": (".xz",), "tar": (".tar",),
    "7z": (".7z",), "rar": (".rar",), "NIfTI": (".nii",), "NRRD": (".nrrd", ".nhdr"),
    "MetaImage": (".mha", ".mhd"), "csv": (".csv", ".tsv"), "JSON": (".json", ".jsonl"),
    "text": (".txt", ".md", ".rst", ".log", ".ini", ".cfg", ".yml", ".yaml", ".toml", ".inf",
             ".py", ".sh", ".bat", ".m", ".sha256", ".md5", ".sum"),
    "XML": (".xml",), "HTML": (".html", ".htm"), "PDF": (".pdf",), "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"), "TIFF": (".tif", ".tiff"), "GIF": (".gif",), "BMP": (".bmp",),
    "NumPy": (".npy", ".npz"), "HDF5": (".h5", ".hdf5"), "Parquet": (".parquet",),
    "pickle": (".pkl", ".pickle"), "database": (".db", ".sqlite"), "program": (".exe", ".dll"),
    "spreadsheet": (".xls", ".xlsx", ".ods"), "document": (".doc", ".docx", ".odt", ".rtf"),
    "video": (".mp4", ".avi", ".mov"), "mesh": (".stl", ".obj", ".ply"),
}  # fmt: skip
_BY_ENDING = {ending: name for name, endings in _FORMATS.items() for ending in endings}
_SIGNATURES = (
    (b"\x1f\x8b", "gzip"), (b"PK\x03\x04", "zip"), (b"PK\x05\x06", "zip"), (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"), (b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!", "rar"),
    (b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"), (b"%PDF", "PDF"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"\x5c\x01\0\0", "NIfTI"), (b"\0\0\x01\x5c", "NIfTI"),
    (b"\x93NUMPY", "NumPy"), (b"\x89HDF", "HDF5"), (b"PAR1", "Parquet"), (b"MZ", "program"),
    (b"\x7fELF", "program"), (b"NRRD", "NRRD"), (b"SQLite format 3", "database"),
    (b"\0\x05\x16\x07", "AppleDouble"), (b"\0\x05\x16\0", "AppleSingle"),
    (b"\0\0\0\x01Bud1", "Finder"), (b"\xd0\xcf\x11\xe0", "document"),
)  # fmt: skip
_LOOKED_AT = 4096
_BLANK = frozenset(b"\t\n\r\f\x1b")


def is_junk(key: str) -> bool:
    """Whether a file was written by an operating system or a tool, by its name."""
    *folders, name = PurePosixPath(key).parts or ("",)
    lower = name.lower()
    return (
        not _JUNK_FOLDERS.isdisjoint(folders)
        or lower in _JUNK_NAMES
        or name.startswith(_JUNK_BEGINNINGS)
        or lower.endswith(_JUNK_ENDINGS)
    )


def is_named_slice(key: str) -> bool:
    """Whether a name has a suffix of DICOM files."""
    return PurePosixPath(key).suffix.lower() in _SLICE_ENDINGS


def find_format(key: str, head: bytes) -> str:
    """Return the format of a file that is not DICOM.

    Parameters
    ----------
    key : str
        Name of the file, below any folder.
    head : bytes
        First bytes of the file.

    Returns
    -------
    str
        A word for people. Empty where the file may be a damaged DICOM object: it is empty, or
        binary and of no known format, or it is named as DICOM objects are.
    """
    if head[128:132] == b"DICM":
        return ""
    suffix = PurePosixPath(key).suffix.lower()
    if suffix in _SLICE_ENDINGS:
        return ""
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if suffix in _BY_ENDING:
        return _BY_ENDING[suffix]
    return "text" if is_text(head[:_LOOKED_AT]) else ""


def is_text(head: bytes) -> bool:
    """Whether bytes are text: not empty, and without control characters."""
    return bool(head) and not any(byte < 32 and byte not in _BLANK for byte in head)
