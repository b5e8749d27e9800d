"""Count the contents of a store in one pass over its records.

The sums are complete: each study is committed, quarantined, failed or has a damaged record, and
each object is stored, refused or unused. Not here: rendering (`pipeline.report.page`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from storage_schemas.errors import SliceError, StoreError, StudyError
from storage_schemas.outcomes import is_refused, is_unused
from storage_schemas.records import CROPPED, STORED, StudyRecord
from storage_schemas.store import OVERVIEW, StudyStore

LISTED = 100
"""Maximum number of refused objects listed per kind; the quarantine table holds all of them."""


@dataclass(frozen=True)
class StudyFacts:
    """Summary of one study.

    Parameters
    ----------
    study, outcome, kind, reason : str
        Fields of the record.
    objects, refused : int
        Number of objects listed in the source, and number of those in quarantine.
    unused : int
        Number of those that are in order and no part of the stack.
    pictured : bool
        Whether the store holds an overview of the study.
    refusals : tuple of str
        Kinds of the refused objects of a committed study, sorted.
    shape : tuple of int
        Shape of the volume (z, y, x); zeros without a volume.
    spacing : tuple of float
        Voxel spacing of the volume in mm, (z, y, x).
    geometry : str
        Geometry classes, joined by "+".
    syntaxes, decoders : tuple of str
        Transfer syntaxes and decoders of the stored objects, sorted.
    levels : tuple of str
        Levels with a crop.
    missing_outcomes : tuple of str
        Outcomes of the levels without a crop, sorted.
    """

    study: str
    outcome: str
    kind: str
    reason: str
    objects: int
    refused: int
    refusals: tuple[str, ...] = ()
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing: tuple[float, float, float] = (0.0, 0.0, 0.0)
    geometry: str = ""
    syntaxes: tuple[str, ...] = ()
    decoders: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    missing_outcomes: tuple[str, ...] = ()
    unused: int = 0
    pictured: bool = False


@dataclass(frozen=True)
class RefusedObject:
    """An object of the source that is in quarantine for a reason of its own."""

    study: str
    key: str
    reason: str


@dataclass
class Quarantine:
    """Studies and objects in quarantine under one kind.

    Parameters
    ----------
    kind : str
        Kind of the refusal.
    studies : list of StudyFacts
        Studies that were refused as a whole.
    objects : int
        Number of refused objects, including those of refused studies.
    object_studies : set of str
        Studies that have such objects.
    individual : int
        Number of objects that were refused for a reason of their own, not with their study.
    listed : list of RefusedObject
        The first `LISTED` of the individually refused objects.
    """

    kind: str
    studies: list[StudyFacts] = field(default_factory=list)
    objects: int = 0
    object_studies: set[str] = field(default_factory=set)
    individual: int = 0
    listed: list[RefusedObject] = field(default_factory=list)

    @property
    def advice(self) -> str:
        """Meaning of the kind, and what to do."""
        kinds = {**SliceError.kinds, **StudyError.kinds}
        return kinds.get(self.kind, "")


@dataclass
class StoreTally:
    """Counts over all records of a store.

    Parameters
    ----------
    studies : list of StudyFacts
        Summaries of the studies, sorted by key.
    damaged : list of StoreError
        Errors of the records that cannot be read; their studies are counted nowhere else.
    stored : Counter
        Number of stored objects by (transfer syntax, decoder).
    geometry : Counter
        Number of committed studies by geometry class.
    quarantine : dict of str to Quarantine
        Refused studies and objects by kind.
    levels : dict of str to Counter
        Number of vertebrae by level and outcome.
    mean_hu : dict of str to list of float
        Mean HU inside each mask by level.
    source_bytes, stored_bytes : int
        Size of all objects of the source, and of all arrays.
    arrays : int
        Number of arrays.
    """

    studies: list[StudyFacts] = field(default_factory=list)
    damaged: list[StoreError] = field(default_factory=list)
    stored: Counter[tuple[str, str]] = field(default_factory=Counter)
    geometry: Counter[str] = field(default_factory=Counter)
    quarantine: dict[str, Quarantine] = field(default_factory=dict)
    levels: dict[str, Counter[str]] = field(default_factory=dict)
    mean_hu: dict[str, list[float]] = field(default_factory=dict)
    source_bytes: int = 0
    stored_bytes: int = 0
    arrays: int = 0

    @property
    def outcomes(self) -> dict[str, int]:
        """Number of studies by outcome; those with a damaged record have no other."""
        counts = Counter(facts.outcome for facts in self.studies)
        found = {name: counts[name] for name in ("committed", "quarantined")}
        return found | ({"with a damaged record": len(self.damaged)} if self.damaged else {})

    @property
    def objects(self) -> dict[str, int]:
        """Number of stored, of refused and of unused objects of the source."""
        refused = sum(facts.refused for facts in self.studies)
        unused = sum(facts.unused for facts in self.studies)
        counts = {STORED: self.stored.total(), "refused": refused}
        return counts | ({"unused": unused} if unused else {})

    @property
    def vertebrae(self) -> dict[str, int]:
        """Number of expected vertebrae in committed studies by outcome, ``cropped`` first."""
        counts: Counter[str] = sum(self.levels.values(), Counter())
        return {CROPPED: counts.pop(CROPPED, 0), **dict(counts.most_common())}

    @property
    def committed(self) -> list[StudyFacts]:
        """Summaries of the committed studies."""
        return [facts for facts in self.studies if facts.outcome == "committed"]


def tally_store(store: StudyStore) -> StoreTally:
    """Count the contents of a store from its records.

    Parameters
    ----------
    store : StudyStore
        Store to count; it is only read. Damaged records are counted as such.
    """
    counts = StoreTally()
    for record in _records(store, counts.damaged):
        facts = _facts(record)
        counts.studies.append(facts)
        counts.source_bytes += sum(entry.size for entry in record.inputs)
        counts.stored_bytes += sum(array.size for array in record.arrays)
        counts.arrays += len(record.arrays)
        _count_inputs(counts, record, facts)
        if record.volume is not None:
            counts.geometry[facts.geometry] += 1
        for vertebra in record.vertebrae:
            counts.levels.setdefault(vertebra.level, Counter())[vertebra.outcome] += 1
            if vertebra.mean_hu is not None:
                counts.mean_hu.setdefault(vertebra.level, []).append(vertebra.mean_hu)
    return counts


def _records(store: StudyStore, damaged: list[StoreError]) -> Iterator[StudyRecord]:
    studies = store.studies()
    for start in range(0, len(studies), LISTED):
        part = studies[start : start + LISTED]
        try:
            yield from list(store.records(part))
        except StoreError:
            # At least one is damaged: read them one by one to find out which.
            for study in part:
                try:
                    yield store.record(study)
                except StoreError as error:
                    damaged.append(error)


def _count_inputs(counts: StoreTally, record: StudyRecord, facts: StudyFacts) -> None:
    def under(kind: str) -> Quarantine:
        return counts.quarantine.setdefault(kind, Quarantine(kind))

    if record.outcome == "quarantined":
        under(record.kind).studies.append(facts)
    for entry in record.inputs:
        if entry.outcome == STORED:
            counts.stored[entry.transfer_syntax, entry.decoder] += 1
            continue
        if is_unused(entry.outcome):
            continue
        kind = under(entry.outcome)
        kind.objects += 1
        kind.object_studies.add(record.study)
        if entry.outcome == record.kind and entry.reason == record.reason:
            continue
        kind.individual += 1
        if len(kind.listed) < LISTED:
            kind.listed.append(RefusedObject(record.study, entry.key, entry.reason))


def _facts(record: StudyRecord) -> StudyFacts:
    refused = [entry.outcome for entry in record.inputs if is_refused(entry.outcome)]
    stored = [entry for entry in record.inputs if entry.outcome == STORED]
    facts = StudyFacts(
        record.study,
        record.outcome,
        record.kind,
        record.reason,
        len(record.inputs),
        len(refused),
        unused=sum(is_unused(entry.outcome) for entry in record.inputs),
        pictured=any(array.path == f"{record.study}/{OVERVIEW}" for array in record.arrays),
    )
    if record.volume is None:
        return facts
    geometry = record.volume.geometry
    missing = {entry.outcome for entry in record.vertebrae} - {CROPPED}
    return replace(
        facts,
        refusals=_sorted(refused),
        shape=geometry.shape,
        spacing=geometry.spacing,
        geometry="+".join(geometry.classes),
        syntaxes=_sorted(entry.transfer_syntax for entry in stored),
        decoders=_sorted(entry.decoder for entry in stored),
        levels=tuple(v.level for v in record.vertebrae if v.outcome == CROPPED),
        missing_outcomes=_sorted(missing),
    )


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
