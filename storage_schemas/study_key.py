"""The key of a study: a DICOM UID, checked once, where a name enters the program.

A `StudyKey` is part of object keys, so what it may hold decides whether a name can leave the store:
dots and slashes of any other kind cannot.
"""

import hashlib
import re

from storage_schemas.errors import StudyError

MAX_LENGTH = 64
"""Characters of a UID (DICOM PS3.5 section 9)."""

# Components of digits joined by single dots (PS3.5 section 9.1).
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


class StudyKey(str):
    """A StudyInstanceUID that has been checked; everywhere else an ordinary string.

    Parameters
    ----------
    text : str
        A DICOM UID: digits in components joined by single dots, at most 64 characters
        (PS3.5 section 9.1). A `StudyKey` is returned as it is.

    Raises
    ------
    StudyError
        ``study-key-invalid`` where the text is no UID.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> "StudyKey":
        """Check the text; see the class."""
        if isinstance(text, StudyKey):
            return text
        if not text:
            reason = "files beside the studies' folders, in none of them"
            raise StudyError("study-key-invalid", reason)
        if not cls.is_valid(text):
            shown = text if len(text) <= 80 else f"{text[:77]}..."
            reason = f"{shown!r} is no DICOM UID of up to {MAX_LENGTH} characters"
            raise StudyError("study-key-invalid", reason)
        return super().__new__(cls, text)

    @staticmethod
    def is_valid(text: str) -> bool:
        """Return whether a text is a DICOM UID of at most 64 characters."""
        return len(text) <= MAX_LENGTH and bool(_UID.fullmatch(text))

    @classmethod
    def from_url(cls, url: str) -> "StudyKey":
        """Return a key for a folder that is not named by a UID: 2.25 and 128 bits of its SHA-256.

        2.25 is the root of UIDs made from UUIDs (PS3.5 section B.2); no scanner's UID begins so.
        """
        data = url.encode(errors="surrogateescape")
        return cls(f"2.25.{int.from_bytes(hashlib.sha256(data).digest()[:16], 'big')}")
