"""Plan a run, then execute the plan.

A plan lists the studies that are missing in the store or changed in the source, largest first. An
executor maps a function over studies and yields results as they complete; it has no knowledge of
DICOM. Not here: processing one study (`pipeline.study`), and where tasks run
(`pipeline.executors`).
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.config import Layout, StudyConfig
from pipeline.lease import Lease, is_current
from pipeline.source.beside import check_mask_names
from pipeline.source.listing import StudyListing, list_masks
from pipeline.studies import guess_layout, sort_source
from pipeline.study import StudyRow, run_study
from pipeline.tables import records_sha256
from storage_schemas.canonical import sha256_json
from storage_schemas.errors import CspineError, RunError, StoreError, UsageError
from storage_schemas.records import RecordHead, StudyRecord
from storage_schemas.store import StudyStore
from storage_schemas.study_key import StudyKey


@dataclass(frozen=True)
class StudyTask:
    """What all tasks of one run do: call it with a study.

    Schedulers are shared, and Dask takes two tasks of one key for the same task. So the key holds
    everything that decides a result and where it goes, and the run that asks for it.

    Parameters
    ----------
    config : StudyConfig
        Settings of the run.
    store_url : str
        Absolute URL of the store, since workers have working directories of their own.
    threads : int, optional
        Number of decoding threads in each task; all usable cores by default.
    lease : Lease, optional
        Lease of the run on the store, checked before each commit.
    run : str
        Random name of the run; rows of any other run are refused.
    """

    config: StudyConfig
    store_url: str
    threads: int | None = None
    lease: Lease | None = None
    run: str = field(default_factory=lambda: secrets.token_hex(8))

    def __call__(self, listing: StudyListing) -> StudyRow:
        """Process one study and commit the result; returns its row, which names the run."""
        row = run_study(listing, self.config, self.store_url, self.threads, self._check_lease)
        return replace(row, run=self.run)

    def key(self, listing: StudyListing) -> str:
        """Key of the task for one study, for Dask."""
        decides = {
            "run": self.run,
            "store": self.store_url,
            "root": listing.root,
            "study": listing.study,
            "input": listing.sha256,
            "config": self.config.digest(masked=listing.mask is not None),
        }
        return f"study-{listing.key}-{sha256_json(decides)[:32]}"

    def _check_lease(self) -> None:
        if self.lease is not None and not is_current(self.lease):
            raise RunError("lease-lost", "another run writes to the store", key=self.store_url)


Executor = Callable[
    [StudyTask, list[StudyListing]], Iterable[tuple[StudyListing, StudyRow | Exception]]
]


@dataclass(frozen=True)
class Plan:
    """Studies that a run will process, and those that it will skip.

    Parameters
    ----------
    todo : tuple of StudyListing
        Studies to process, largest first, so that the last tasks are short.
    done : tuple of StudyRow
        Studies whose record matches the current input and settings.
    orphan_masks : int
        Number of masks without a study in the source.
    put_off : int
        Number of studies without a mask that ``--only-masked`` leaves to a later run.
    ignored : int
        Number of files of the source that are no slices and lie in no study's folder.
    records : str
        `pipeline.tables.records_sha256` of the store at the time of planning.
    """

    todo: tuple[StudyListing, ...]
    done: tuple[StudyRow, ...]
    orphan_masks: int = 0
    put_off: int = 0
    ignored: int = 0
    records: str = ""

    @property
    def listed(self) -> int:
        """Number of studies in the plan, to process or to skip."""
        return len(self.todo) + len(self.done)


@dataclass(frozen=True)
class RunSummary:
    """Counts of a run; ``committed + quarantined + failed = listed`` always holds.

    Parameters
    ----------
    listed, committed, quarantined, failed : int
        Number of studies in the plan, and by outcome.
    unchanged : int
        Number of committed and quarantined studies that an earlier run had finished.
    objects, refused, unused, slices, crops : int
        Counts over the studies that this run processed.
    bytes_in, bytes_out : int
        Bytes that this run fetched and stored.
    labels_unmatched : int
        Number of studies in the label table that the source does not have.
    boxes_unplaced : int
        Number of boxes that are in no fractured vertebra.
    """

    listed: int = 0
    committed: int = 0
    quarantined: int = 0
    failed: int = 0
    unchanged: int = 0
    objects: int = 0
    refused: int = 0
    unused: int = 0
    slices: int = 0
    crops: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    labels_unmatched: int = 0
    boxes_unplaced: int = 0

    def add(self, row: StudyRow, *, unchanged: bool = False) -> "RunSummary":
        """Return the summary with one more study."""
        counted = replace(
            self,
            listed=self.listed + 1,
            unchanged=self.unchanged + unchanged,
            **{row.outcome: getattr(self, row.outcome) + 1},
        )
        if unchanged:
            return counted
        fields = ("objects", "refused", "unused", "slices", "crops", "bytes_in", "bytes_out")
        return replace(counted, **{f: getattr(self, f) + getattr(row, f) for f in fields})

    @property
    def exit_code(self) -> int:
        """0 if all is committed, 1 if anything is in quarantine, 3 if any study failed."""
        if self.failed:
            return 3
        return 1 if self.quarantined or self.refused else 0

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return asdict(self)


def plan_run(
    source: str,
    store: StudyStore,
    config: StudyConfig,
    *,
    layout: Layout | None = None,
    series: Mapping[str, str] | None = None,
    only_masked: bool = False,
    limit: int | None = None,
) -> tuple[Plan, list[str]]:
    """List the source and compare it with the store.

    Parameters
    ----------
    source : str
        Folder, or any fsspec URL.
    store : StudyStore
        Store whose records tell which studies are finished.
    config : StudyConfig
        Settings of the run.
    layout : {"study", "scan"}, optional
        Layout of the source, see `pipeline.studies.sort_source`; by the folders' names by default.
    series : mapping of str to str, optional
        For single studies, the series to read, as `StudyConfig.series` names it.
    only_masked : bool
        Whether to plan only the studies with a mask.
    limit : int, optional
        Maximum number of studies, the first ones by key.

    Returns
    -------
    plan : Plan
        Studies to process and to skip.
    listed : list of str
        All studies of the source, without the limit.
    """
    found = sort_source(source, layout or guess_layout(source))
    listings = found.studies
    listed = [listing.study for listing in listings]
    masks = list_masks(config.masks) if config.masks else {}
    check_mask_names(masks, listed, config.masks or "")
    named = series or {}
    chosen = [
        replace(listing, mask=masks.get(listing.study), series=named.get(listing.study, ""))
        for listing in listings
    ]
    if only_masked:
        chosen = [listing for listing in chosen if listing.mask]
    put_off = len(listings) - len(chosen)
    heads = list(store.heads())
    known = _known(heads)
    todo, done = [], []
    for listing in chosen[: limit or None]:
        record = known.get(listing.key)
        # Stores of before hold lost workers as quarantined; today's limits may be others.
        if record and record.kind != "worker-lost" and _fits(record, listing, config):
            done.append(_row(record, record.objects))
        else:
            todo.append(listing)
    todo.sort(key=lambda listing: (-listing.size, listing.study))
    plan = Plan(
        tuple(todo),
        tuple(done),
        orphan_masks=len(set(masks) - set(listed)),
        put_off=put_off,
        ignored=found.ignored,
        records=records_sha256(heads),
    )
    return plan, listed


def execute(
    plan: Plan,
    executor: Executor,
    config: StudyConfig,
    store: StudyStore,
    observe: Callable[[StudyRow, RunSummary], None],
    threads: int | None = None,
    lease: Lease | None = None,
) -> RunSummary:
    """Execute a plan. A study that fails does not end the run.

    Parameters
    ----------
    plan : Plan
        Plan from `plan_run`.
    executor : callable
        Executor from `pipeline.executors`.
    config : StudyConfig
        Settings of the run.
    store : StudyStore
        Store to write to.
    observe : callable
        Function that is called with each finished study and the summary so far.
    threads : int, optional
        Number of decoding threads in each task; all usable cores by default.
    lease : Lease, optional
        Lease of the run on the store, checked before each commit.

    Returns
    -------
    RunSummary
        Counts over all studies of the plan.
    """
    summary = RunSummary()
    for row in plan.done:
        summary = summary.add(row, unchanged=True)
    task = StudyTask(config, store.objects.url_of(""), threads, lease)
    for listing, result in executor(task, list(plan.todo)):
        if isinstance(result, Exception):
            row = _handle(listing, result)
        elif (result.study, result.run) == (listing.key, task.run):
            row = result
        else:
            error = RunError("row-foreign", f"{result.study} of run {result.run or '?'}")
            row = _handle(listing, error)
        summary = summary.add(row)
        observe(row, summary)
    if summary.listed != plan.listed:
        raise RuntimeError(f"{plan.listed} studies planned, {summary.listed} accounted for")
    return summary


def _handle(listing: StudyListing, error: Exception) -> StudyRow:
    """Count a study that could not be processed as failed; the next run tries it again.

    A worker that was lost to memory or time is a failure of the machine, not of the study.
    """
    if isinstance(error, UsageError):
        raise error
    reason = str(error) if isinstance(error, CspineError) else f"{type(error).__name__}: {error}"
    kind = error.kind if isinstance(error, CspineError) else "study-failed"
    return StudyRow(listing.key, "failed", kind, " ".join(reason.split()), len(listing.objects))


def _known(heads: Iterable[RecordHead | StoreError]) -> dict[StudyKey, RecordHead]:
    """Records by study; a damaged record counts as missing, so its study is processed again."""
    known: dict[StudyKey, RecordHead] = {}
    for head in heads:
        if isinstance(head, RecordHead):
            known[head.study] = head
        elif head.kind == "schema-unsupported":
            raise head
    return known


def _fits(record: RecordHead, listing: StudyListing, config: StudyConfig) -> bool:
    config_sha256 = config.digest(masked=listing.mask is not None)
    return (record.input_sha256, record.config_sha256) == (listing.sha256, config_sha256)


def _row(record: StudyRecord | RecordHead, objects: int) -> StudyRow:
    return StudyRow(record.study, record.outcome, record.kind, record.reason, objects)
