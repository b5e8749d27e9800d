"""Tables of an inspection on a terminal: each study with its series, and why one would be read."""

from pydicom.uid import UID
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.inspection import READABLE, Inspection, SeriesView, StudyView
from presentation.progress import result_console


def render(inspection: Inspection, console: Console | None = None) -> None:
    """Print an inspection for people."""
    console = console or result_console()
    for study in inspection.studies:
        _render_study(study, console)


def _render_study(study: StudyView, console: Console) -> None:
    outcome = "[green]readable[/]" if study.outcome == READABLE else f"[red]{study.outcome}[/]"
    console.print(
        f"[bold]{escape(study.study)}[/]  {outcome} {escape(study.reason)}"
        f"  {study.objects} objects, {study.size / 1e6:.1f} MB"
        f" -> {study.volume_bytes / 1e6:.1f} MB of voxels"
    )
    series = Table("", "no", "series", "image", "kernel", "slices", "size", "spacing mm", "gaps mm",
                   "tilt", "geometry", "syntax", "why", box=None, pad_edge=False)  # fmt: skip
    for view in study.series:
        series.add_row(
            ">" if view.chosen else "",
            "" if view.number is None else str(view.number),
            escape(view.series) or "(no UID)",
            f"{view.image}, {view.origin}",
            view.kernel,
            str(view.slices),
            f"{view.rows}x{view.columns}",
            " ".join(f"{mm:.3g}" for mm in view.spacing),
            " ".join(f"{mm:.3g}" for mm in view.gaps) if view.geometry else "",
            f"{view.tilt_degrees:.1f}" if view.geometry else "",
            _name_geometry(view),
            " ".join(UID(syntax).keyword or escape(syntax) for syntax in view.syntaxes),
            view.reason,
        )
    if study.series:
        console.print(series)
    for problem in study.problems:
        where = escape(f"{problem.key}: {problem.detail}")
        console.print(f"  [yellow]{problem.kind}[/] x {problem.count}, first {where}")
    for entry in study.unused:
        where = escape(f"{entry.key}: {entry.detail}")
        console.print(f"  unused: {entry.kind} x {entry.count}, first {where}")


def _name_geometry(view: SeriesView) -> str:
    if view.geometry:
        return "+".join(view.geometry)
    if view.localizer:
        return "scout"
    return "one slice" if view.axial else "not axial"
