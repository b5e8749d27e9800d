"""Track the outcome of each object of a study while the study is processed."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pipeline.dicom.selection import UnusedObject
from pipeline.dicom.volume import StudyVolume
from pipeline.source.listing import StudyListing, fetch
from storage_schemas.errors import SliceError, StudyError
from storage_schemas.outcomes import STORED, UNUSED, is_unused
from storage_schemas.records import InputObject


class StudyInputs:
    """Outcomes of the listed objects; after processing, every object has one."""

    def __init__(self, listing: StudyListing, *, hashed: bool) -> None:
        self._listing = listing
        self._rows = {
            entry.key: InputObject(
                listing.shown_key(entry.key, hashed=hashed), entry.size, "", outcome=""
            )
            for entry in listing.objects
        }

    def shown_key(self, key: str) -> str:
        """Return an object's key as written in the record."""
        return self._rows[key].key

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Fetch the objects and record their digests."""
        for key, data in fetch(self._listing):
            digest = hashlib.sha256(data).hexdigest()
            self._rows[key] = replace(self._rows[key], size=len(data), sha256=digest)
            yield key, data

    def note_volume(self, volume: StudyVolume) -> None:
        """Record the outcome of each object; an object with any stored frame is stored."""
        self._note(volume.unused, volume.refused)
        for origin in volume.slices:
            self._rows[origin.key] = replace(
                self._rows[origin.key],
                outcome=STORED,
                reason=""
                if is_unused(self._rows[origin.key].outcome)
                else self._rows[origin.key].reason,
                transfer_syntax=origin.transfer_syntax,
                decoder=origin.decoder,
            )

    def note_error(self, error: StudyError) -> None:
        """Record the outcome of each object of a study without a volume."""
        self._note(getattr(error, "unused", ()), getattr(error, "refused", ()))

    def _note(self, unused: Iterable[UnusedObject], refused: Iterable[SliceError]) -> None:
        for entry in unused:
            row = self._rows[entry.key]
            self._rows[entry.key] = replace(row, outcome=UNUSED + entry.kind, reason=entry.detail)
        for refusal in refused:
            row = self._rows[refusal.key]
            self._rows[refusal.key] = replace(row, outcome=refusal.kind, reason=refusal.detail)

    def rows(self, error: StudyError | None = None) -> tuple[InputObject, ...]:
        """Return all objects by key; those without an outcome get that of the study."""
        rows = sorted(self._rows.values(), key=lambda row: row.key)
        if error is None:
            if unknown := [row.key for row in rows if not row.outcome]:
                raise RuntimeError(f"{unknown[0]} is not stored, refused or unused")
            return tuple(rows)
        return tuple(
            row
            if row.outcome not in ("", STORED)
            else replace(row, outcome=error.kind, reason=error.detail)
            for row in rows
        )
