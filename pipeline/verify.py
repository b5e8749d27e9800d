"""Verify a store: its arrays against the records, and its records against the source.

There are three checks of increasing cost: each stored array has the checksum in its record; each
object of the source has the checksum that it had when it was read; and a second, independent
decoder gives the same pixels.
"""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.dicom.crosscheck import cross_check
from pipeline.dicom.limits import ACCEPTED
from pipeline.source.listing import StudyListing
from storage_schemas.errors import CspineError, RunError, StoreError, reason_of
from storage_schemas.objects import ObjectFolder
from storage_schemas.records import STORED, StudyRecord
from storage_schemas.store import StudyStore
from storage_schemas.study_key import StudyKey

STUDIES_AT_ONCE = 2
"""Studies that are verified concurrently; decoding is CPU-bound, so more only cost memory."""


@dataclass(frozen=True)
class StudyCheck:
    """Result of verifying one study.

    Parameters
    ----------
    study : str
        Key of the study.
    arrays, objects : int
        Number of arrays and of source objects that were compared with the record.
    decoded_twice : int
        Number of source objects that were also decoded with a second decoder.
    damage : tuple of CspineError
        Differences that were found; empty where there are none.
    """

    study: str
    arrays: int = 0
    objects: int = 0
    decoded_twice: int = 0
    damage: tuple[CspineError, ...] = ()


def verify_store(
    store: StudyStore,
    source: Mapping[StudyKey, StudyListing] | None = None,
    cross_check_share: float = 0.0,
) -> Iterator[StudyCheck]:
    """Read all arrays of a store and compare them with the records.

    Parameters
    ----------
    store : StudyStore
        Store to verify; it is only read.
    source : mapping of StudyKey to StudyListing, optional
        Listings by study key; if given, their objects are fetched and compared as well.
    cross_check_share : float
        Fraction of the source objects that are also decoded with a second decoder, 0 to 1.

    Yields
    ------
    StudyCheck
        Result for each record, sorted by study.
    """

    def check(study: StudyKey) -> StudyCheck:
        try:
            record = store.record(study)
        except StoreError as error:
            return StudyCheck(study, damage=(error,))
        damage: list[CspineError] = list(store.check(record))
        objects = twice = 0
        if source is not None:
            for result in _check_source(record, source.get(study), cross_check_share):
                objects += 1
                twice += result.decoded_twice
                damage += result.damage
        return StudyCheck(study, len(record.arrays), objects, twice, tuple(damage))

    with ThreadPoolExecutor(STUDIES_AT_ONCE) as pool:
        yield from pool.map(check, store.studies())


def _check_source(
    record: StudyRecord, listing: StudyListing | None, share: float
) -> Iterator[StudyCheck]:
    """Compare each object of the source with the record, whose keys may be digests."""
    if listing is None:
        gone = StoreError("source-changed", "the study is not in the source", key=record.study)
        yield StudyCheck(record.study, damage=(gone,))
        return
    known = {entry.key: entry for entry in record.inputs}
    shown = {
        name: entry.key
        for entry in listing.objects
        for name in (listing.shown_key(entry.key, hashed=hashed) for hashed in (False, True))
        if name in known
    }
    unknown = {entry.key for entry in listing.objects} - set(shown.values())
    for key in sorted((set(known) - set(shown)) | unknown):
        what = "new in the source" if key in unknown else "no longer in the source"
        yield StudyCheck(record.study, damage=(StoreError("source-changed", what, key=key),))
    folder = ObjectFolder(listing.root)
    for name, key in sorted(shown.items()):
        entry = known[name]
        try:
            data = folder.get(key)
        except OSError as fault:
            lost = RunError("object-unreadable", reason_of(fault), key=name)
            yield StudyCheck(record.study, damage=(lost,))
            continue
        if hashlib.sha256(data).hexdigest() != entry.sha256 and entry.sha256:
            changed = StoreError("source-changed", "its content has changed", key=key)
            yield StudyCheck(record.study, damage=(changed,))
        elif entry.outcome == STORED and _is_chosen(entry.sha256, share):
            other = cross_check(key, data, ACCEPTED)
            yield StudyCheck(record.study, decoded_twice=1, damage=(other,) if other else ())
        else:
            yield StudyCheck(record.study)


def _is_chosen(sha256: str, share: float) -> bool:
    """Whether an object is in the sample; it depends on the digest, so samples are repeatable."""
    return int(sha256[:8], 16) < share * 2**32
