"""Prove a store: its arrays against their records, its records against the source.

Three proofs, from cheap to dear: what is stored is what was written; the source is still what was
read; and a second, independent decoder sees the same pixels in it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.dicom.crosscheck import cross_check
from pipeline.source.listing import StudyListing
from storage_schemas.errors import CspineError, RunError, StoreError, reason_of
from storage_schemas.objects import ObjectFolder
from storage_schemas.records import STORED, StudyRecord
from storage_schemas.store import StudyStore
from storage_schemas.study_key import StudyKey

STUDIES_AT_ONCE = 2
"""Decoding is bound by the processor; more in flight only cost memory."""


@dataclass(frozen=True)
class StudyCheck:
    """What was found of one study.

    Parameters
    ----------
    study : str
    arrays, objects, decoded_twice : int
        Arrays compared with the record, objects of the source likewise, and of these the ones that
        a second decoder read too.
    damage : tuple of CspineError
        Empty where the study is whole.
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
    """Read every array of every study back and compare it with its record.

    Parameters
    ----------
    store : StudyStore
    source : mapping of StudyKey to StudyListing, optional
        By study key; where given, its objects are fetched and compared too.
    cross_check_share : float
        Share of the source's objects that a second decoder reads as well.

    Yields
    ------
    StudyCheck
        One a record, in the order of the studies.
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
    """Compare each object of the source with the record's; keys may stand there as digests."""
    if listing is None:
        gone = StoreError("source-changed", "the source holds no such study", key=record.study)
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
        what = "is new in the source" if key in unknown else "is gone from the source"
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
            changed = StoreError("source-changed", "its bytes are others", key=key)
            yield StudyCheck(record.study, damage=(changed,))
        elif entry.outcome == STORED and _is_chosen(entry.sha256, share):
            other = cross_check(key, data)
            yield StudyCheck(record.study, decoded_twice=1, damage=(other,) if other else ())
        else:
            yield StudyCheck(record.study)


def _is_chosen(sha256: str, share: float) -> bool:
    """Whether an object is in the sample: its digest decides, so a sample is always the same."""
    return int(sha256[:8], 16) < share * 2**32
