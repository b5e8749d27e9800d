"""Prove a store: every array and metadata file against its study's record."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from storage_schemas.errors import StoreError
from storage_schemas.store import StudyStore

STUDIES_AT_ONCE = 2
"""Decoding is bound by the processor; more in flight only cost memory."""


@dataclass(frozen=True)
class StudyCheck:
    """What was found of one study.

    Parameters
    ----------
    study : str
    arrays : int
        Arrays that its record names.
    damage : tuple of StoreError
        Empty where the study is whole.
    """

    study: str
    arrays: int
    damage: tuple[StoreError, ...]


def verify_store(store: StudyStore) -> Iterator[StudyCheck]:
    """Read every array of every study back and compare it with its record.

    Yields
    ------
    StudyCheck
        One a record, in the order of the studies.
    """

    def check(study: str) -> StudyCheck:
        try:
            record = store.record(study)
        except StoreError as error:
            return StudyCheck(study, 0, (error,))
        return StudyCheck(study, len(record.arrays), tuple(store.check(record)))

    with ThreadPoolExecutor(STUDIES_AT_ONCE) as pool:
        yield from pool.map(check, store.studies())
