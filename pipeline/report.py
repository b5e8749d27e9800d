"""One self-contained HTML page about a store: what went in, what came out, and how it looks."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import jinja2
from pydicom.uid import UID

from pipeline.pictures import draw_crops, draw_overview
from storage_schemas.records import STORED, StudyRecord
from storage_schemas.store import StudyStore

GALLERY = 8
"""Studies shown with pictures; each adds about 150 kB."""


@dataclass(frozen=True)
class StudyPictures:
    """One study of the gallery.

    Parameters
    ----------
    study : str
    facts : str
        Shape, spacing and geometry, in one line.
    overview, crops : str or None
        Data URLs.
    """

    study: str
    facts: str
    overview: str
    crops: str | None


def render_report(store: StudyStore, *, gallery: int = GALLERY) -> str:
    """Make the page.

    Parameters
    ----------
    store : StudyStore
        Read only.
    gallery : int
        Studies shown with pictures: the first ones by key.

    Returns
    -------
    str
        HTML without any outside reference.
    """
    records = list(store.records())
    committed = [record for record in records if record.outcome == "committed"]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        counts=_counts(records),
        tables={
            "Geometry": Counter("+".join(_volume(r).geometry.classes) for r in committed),
            "Transfer syntax, objects": Counter(
                UID(entry.transfer_syntax).keyword or entry.transfer_syntax
                for r in committed
                for entry in r.inputs
                if entry.outcome == STORED
            ),
            "Decoder, objects": Counter(
                entry.decoder for r in committed for entry in r.inputs if entry.outcome == STORED
            ),
            "Vertebrae": Counter(v.outcome for r in committed for v in r.vertebrae),
        },
        refused_studies=[record for record in records if record.outcome == "quarantined"],
        refused_objects=[
            (record.study, entry)
            for record in committed
            for entry in record.inputs
            if entry.outcome != STORED
        ],
        gallery=[_pictures(store, record) for record in committed[:gallery]],
    )


def _counts(records: list[StudyRecord]) -> dict[str, int]:
    inputs = [entry for record in records for entry in record.inputs]
    stored = sum(entry.outcome == STORED for entry in inputs)
    return {
        "studies": len(records),
        "committed": sum(record.outcome == "committed" for record in records),
        "quarantined": sum(record.outcome == "quarantined" for record in records),
        "objects": len(inputs),
        "objects stored": stored,
        "objects refused": len(inputs) - stored,
        "arrays": sum(len(record.arrays) for record in records),
        "bytes read": sum(entry.size for entry in inputs),
        "bytes stored": sum(array.size for record in records for array in record.arrays),
    }


def _volume(record: StudyRecord) -> Any:
    assert record.volume is not None, "a committed study has a volume"
    return record.volume


def _pictures(store: StudyStore, record: StudyRecord) -> StudyPictures:
    geometry = _volume(record).geometry
    shape = " x ".join(map(str, geometry.shape))
    spacing = " x ".join(f"{size:.2f}" for size in geometry.spacing)
    return StudyPictures(
        study=record.study,
        facts=f"{shape} voxels of {spacing} mm (z, y, x), {' + '.join(geometry.classes)}",
        overview=draw_overview(store, record),
        crops=draw_crops(store, record),
    )
