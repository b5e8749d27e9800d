"""What a store holds, counted in one pass over its records; nothing of a record is kept but counts.

The sums hold by construction, and tests compare them with the records: studies are committed,
quarantined, failed or of a damaged record; objects are stored or refused. Not here: how it looks
(`pipeline.report.page`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from storage_schemas.errors import SliceError, StoreError, StudyError
from storage_schemas.records import CROPPED, STORED, StudyRecord
from storage_schemas.store import StudyStore

LISTED = 100
"""Refused objects that are listed of each kind; the quarantine table holds all of them."""


@dataclass(frozen=True)
class StudyFacts:
    """One study in a line.

    Parameters
    ----------
    study, outcome, kind, reason : str
        As in the record.
    objects, refused : int
        Listed in the source, and of these in quarantine.
    refusals : tuple of str
        Kinds under which objects of a committed study stand in quarantine, sorted.
    shape : tuple of int
        (z, y, x); zeros where there is no volume.
    spacing : tuple of float
        mm, (z, y, x).
    geometry : str
        Classes, joined by "+".
    syntaxes, decoders : tuple of str
        Sorted.
    levels : tuple of str
        Those that have a crop.
    lacking : tuple of str
        Outcomes of the levels that have no crop, sorted.
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
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True)
class RefusedObject:
    """An object of the source that stands in quarantine on its own account."""

    study: str
    key: str
    reason: str


@dataclass
class Quarantine:
    """All that stands in quarantine under one kind.

    Parameters
    ----------
    kind : str
    studies : list of StudyFacts
        Refused as a whole.
    objects : int
        Refused under this kind, those of refused studies included.
    holders : set of str
        Studies that hold such objects.
    listed : list of RefusedObject
        The first `LISTED` that do not just share their study's fate.
    alone : int
        How many such there are.
    """

    kind: str
    studies: list[StudyFacts] = field(default_factory=list)
    objects: int = 0
    holders: set[str] = field(default_factory=set)
    listed: list[RefusedObject] = field(default_factory=list)
    alone: int = 0

    @property
    def advice(self) -> str:
        """What the kind means, and what to do."""
        kinds = {**SliceError.kinds, **StudyError.kinds}
        return kinds.get(self.kind, "")


@dataclass
class StoreTally:
    """The counts.

    Parameters
    ----------
    studies : list of StudyFacts
        By key.
    damaged : list of StoreError
        Of records that cannot be read; their studies are counted nowhere else.
    stored : Counter
        Objects by (transfer syntax, decoder).
    geometry : Counter
        Committed studies by class.
    quarantine : dict of str to Quarantine
        By kind.
    levels : dict of str to Counter
        For each level, vertebrae by outcome.
    mean_hu : dict of str to list of float
        For each level, the mean HU inside each mask.
    source_bytes, stored_bytes, arrays : int
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
        """Studies that are committed, quarantined, or known by a damaged record only."""
        counts = Counter(facts.outcome for facts in self.studies)
        found = {name: counts[name] for name in ("committed", "quarantined")}
        return found | ({"of a damaged record": len(self.damaged)} if self.damaged else {})

    @property
    def objects(self) -> dict[str, int]:
        """Objects of the source that are stored or refused."""
        refused = sum(facts.refused for facts in self.studies)
        return {STORED: self.stored.total(), "refused": refused}

    @property
    def vertebrae(self) -> dict[str, int]:
        """Vertebrae asked for in committed studies, by outcome; cropped ones first."""
        counts: Counter[str] = sum(self.levels.values(), Counter())
        return {CROPPED: counts.pop(CROPPED, 0), **dict(counts.most_common())}

    @property
    def committed(self) -> list[StudyFacts]:
        """The committed studies."""
        return [facts for facts in self.studies if facts.outcome == "committed"]


def tally_store(store: StudyStore) -> StoreTally:
    """Count what the records of a store say.

    Parameters
    ----------
    store : StudyStore
        Read only. A record that is damaged is counted as such.
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
            # One of them is damaged: read them one by one to tell which.
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
        kind = under(entry.outcome)
        kind.objects += 1
        kind.holders.add(record.study)
        if entry.outcome == record.kind and entry.reason == record.reason:
            continue
        kind.alone += 1
        if len(kind.listed) < LISTED:
            kind.listed.append(RefusedObject(record.study, entry.key, entry.reason))


def _facts(record: StudyRecord) -> StudyFacts:
    refused = [entry.outcome for entry in record.inputs if entry.outcome != STORED]
    stored = [entry for entry in record.inputs if entry.outcome == STORED]
    facts = StudyFacts(
        record.study, record.outcome, record.kind, record.reason, len(record.inputs), len(refused)
    )
    if record.volume is None:
        return facts
    geometry = record.volume.geometry
    lacking = {entry.outcome for entry in record.vertebrae} - {CROPPED}
    return replace(
        facts,
        refusals=_sorted(refused),
        shape=geometry.shape,
        spacing=geometry.spacing,
        geometry="+".join(geometry.classes),
        syntaxes=_sorted(entry.transfer_syntax for entry in stored),
        decoders=_sorted(entry.decoder for entry in stored),
        levels=tuple(v.level for v in record.vertebrae if v.outcome == CROPPED),
        lacking=_sorted(lacking),
    )


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
