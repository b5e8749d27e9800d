"""Render the HTML report of a store.

The report has the counts and a gallery of studies whose slices can be scrolled; optional further
pages have the pictures of every study. The pages load no external resource and link only to each
other. Not here: counting (`pipeline.report.tally`), choosing and drawing studies
(`pipeline.report.gallery`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median_low
from typing import Any

from pydicom.uid import UID

from pipeline.report.gallery import Card, choose_studies, draw_cards
from pipeline.report.histogram import sample_hu
from pipeline.report.pictures import GREYS, WINDOWS
from pipeline.report.plots import plot_hu, plot_mean_hu, plot_throughput
from pipeline.report.tally import LISTED, StoreTally, StudyFacts, tally_store
from pipeline.runlog import LoggedRun, read_runs
from presentation.pages import page_templates
from storage_schemas.store import StudyStore

STRIP_BYTES = 10_000_000
"""Budget for the scrollable slices of a report; studies beyond it are shown without them."""
PAGE = 50
"""Number of studies on each further page, of about 50 kB each."""
_RUNS = 20
"""Maximum number of runs in the table of runs."""


@dataclass(frozen=True)
class Page:
    """One HTML document.

    Parameters
    ----------
    name : str
        File name, relative to the folder of the report.
    html : str
        Text of the document.
    damaged : tuple of str
        Messages of the errors that prevented a picture.
    """

    name: str
    html: str
    damaged: tuple[str, ...]


def render_report(
    store: StudyStore,
    *,
    gallery: int,
    name: str,
    pages: str | None = None,
    source: str | None = None,
) -> Iterator[Page]:
    """Render the report, and optionally one further page per `PAGE` studies.

    Parameters
    ----------
    store : StudyStore
        Store to report on; it is only read.
    gallery : int
        Number of studies in the gallery, chosen by `pipeline.report.gallery.choose_studies`.
    name : str
        File name of the report, which the further pages link to.
    pages : str, optional
        Name of the folder of the further pages, beside the report; None renders none.
    source : str, optional
        URL of the source, for links to refused objects.

    Yields
    ------
    Page
        The report first, then the further pages.
    """
    counts = tally_store(store)
    committed = counts.committed
    parts = [committed[start : start + PAGE] for start in range(0, len(committed), PAGE)]
    names = [f"{number:03}.html" for number in range(1, len(parts) + 1)] if pages else []
    cards = list(draw_cards(store, choose_studies(committed, gallery), strips=True))
    pictured = [f for f in counts.studies if f.outcome == "quarantined" and f.pictured]
    refused = list(
        draw_cards(store, [(facts, (facts.kind,)) for facts in pictured[:LISTED]], strips=False)
    )
    shown = {card.facts.study: f"#s{card.facts.study}" for card in cards}
    if pages:
        for own, part in zip(names, parts, strict=True):
            shown = {f.study: f"{pages}/{own}#s{f.study}" for f in part} | shown
    template = page_templates("pipeline").get_template
    html = template("report.html.j2").render(
        store=store.url,
        counts=counts,
        readers=_readers(counts),
        extents=_extents(committed),
        runs=_runs(store, counts),
        plots=_plots(store, counts),
        cards=cards,
        refused=refused,
        viewers=_viewers(cards),
        windows=WINDOWS,
        greys=GREYS,
        shown=shown,
        pages=[f"{pages}/{name}" for name in names],
        source=source.rstrip("/") if source else None,
        listed=LISTED,
    )
    yield Page(name, html, _damaged([*cards, *refused], [str(error) for error in counts.damaged]))
    for own, part in zip(names, parts, strict=False):
        cards = list(draw_cards(store, [(facts, ()) for facts in part], strips=False))
        html = template("studies.html.j2").render(
            store=store.url, report=f"../{name}", cards=cards, name=own, names=names
        )
        yield Page(f"{pages}/{own}", html, _damaged(cards))


def _readers(counts: StoreTally) -> list[tuple[str, str, int]]:
    """Transfer syntax, decoder and number of objects, in descending order of the number."""
    return [
        (UID(syntax).keyword or syntax, decoder, objects)
        for (syntax, decoder), objects in counts.stored.most_common()
    ]


def _extents(committed: Sequence[StudyFacts]) -> list[tuple[str, list[str]]]:
    """Minimum, median and maximum size of the volumes and of their voxels."""
    columns: dict[str, tuple[str, list[float]]] = {
        "slices": ("{:,.0f}", [facts.shape[0] for facts in committed]),
        "rows": ("{:,.0f}", [facts.shape[1] for facts in committed]),
        "columns": ("{:,.0f}", [facts.shape[2] for facts in committed]),
        "slice spacing, mm": ("{:.2f}", [facts.spacing[0] for facts in committed]),
        "pixel spacing, mm": ("{:.3f}", [facts.spacing[1] for facts in committed]),
    }
    return [
        (name, [form.format(value) for value in (min(values), median_low(values), max(values))])
        for name, (form, values) in columns.items()
        if values
    ]


def _runs(store: StudyStore, counts: StoreTally) -> dict[str, Any]:
    """The latest runs, the throughput of the largest one, and the studies that failed."""
    runs = read_runs(store)
    recorded = {facts.study for facts in counts.studies}
    last = {row.study: row for run in runs for row in run.rows}
    failed = [r for r in last.values() if r.outcome == "failed" and r.study not in recorded]
    latest = [run for run in runs if run.rows or run.unreadable][-_RUNS:]
    timed = [run for run in latest if run.seconds > 0 and any(row.slices for row in run.rows)]
    largest = max(timed, key=lambda run: sum(row.slices for row in run.rows), default=None)
    return {
        "all": len(runs),
        "latest": [_run_row(run) for run in reversed(latest)],
        "largest": _name(largest) if largest else "",
        "plot": plot_throughput(largest) if largest else "",
        "failed": sorted(failed, key=lambda row: row.study),
    }


def _name(run: LoggedRun) -> str:
    return run.started.strftime("%Y-%m-%d %H:%M UTC") if run.started else run.name


def _run_row(run: LoggedRun) -> dict[str, Any]:
    slices = sum(row.slices for row in run.rows)
    size = sum(row.bytes_in for row in run.rows)
    return {
        "name": _name(run),
        "studies": len(run.rows),
        **run.outcomes(),
        "slices": slices,
        "bytes": size,
        "seconds": run.seconds,
        "slices_per_second": slices / run.seconds if run.seconds else 0.0,
        "bytes_per_second": size / run.seconds if run.seconds else 0.0,
        "unreadable": run.unreadable,
    }


def _plots(store: StudyStore, counts: StoreTally) -> dict[str, Any]:
    histogram = sample_hu(store, counts.committed)
    voxels = {"whole studies": histogram.overview, "inside the vertebrae": histogram.vertebrae}
    voxels = {name: found for name, found in voxels.items() if found.any()}
    return {
        "hu": plot_hu(voxels) if voxels else "",
        "hu_studies": histogram.studies,
        "hu_damaged": histogram.damaged,
        "mean_hu": plot_mean_hu(counts.mean_hu) if counts.mean_hu else "",
    }


def _viewers(cards: Sequence[Card]) -> list[list[dict[str, Any]]]:
    """Data of the page's script for each card; empty for the cards beyond `STRIP_BYTES`."""
    viewers, spent = [], 0
    for card in cards:
        strips = [(crop, crop.strip) for crop in card.crops if crop.strip]
        spent += sum(len(strip.image) + len(strip.outline or "") for _, strip in strips)
        viewers.append(
            [
                {"level": crop.level, "slices": crop.slices, "middle": crop.middle} | asdict(strip)
                for crop, strip in strips
            ]
            if spent <= STRIP_BYTES
            else []
        )
    return viewers


def _damaged(cards: Sequence[Card], more: Sequence[str] = ()) -> tuple[str, ...]:
    return (*more, *(card.damage for card in cards if card.damage))
