"""What is told of one new study: a JSON document, and one self-contained HTML page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from presentation.figures import png_of
from presentation.pages import data_url, page_templates
from storage_schemas.store import StudyStore
from storage_schemas.vertebrae import LABEL_COLUMNS
from training.explanation.attribution import LevelAttribution
from training.explanation.overlay import grey, shade


@dataclass(frozen=True)
class StudyPage:
    """What a run says of one study.

    Parameters
    ----------
    study : str
    probabilities : tuple of 8 floats
        Calibrated, in the order of `LABEL_COLUMNS`.
    warnings : tuple of str
        Why it is less sure than usual.
    attributions : tuple of LevelAttribution
        Of the levels that have a crop.
    model : str
        Which of the run's models the readings are of.
    """

    study: str
    probabilities: tuple[float, ...]
    warnings: tuple[str, ...]
    attributions: tuple[LevelAttribution, ...]
    model: str


Origins = Mapping[tuple[str, int], Mapping[str, Any]]


def find_origins(store: StudyStore, study: str) -> Origins:
    """For each level and slice of its crop, where it came from: its number and its height in mm."""
    table = store.read_table("slices").select(
        ["study", "level", "crop_z", "instance_number", "z_mm"]
    )
    return {
        (row["level"], row["crop_z"]): {"instance": row["instance_number"], "z_mm": row["z_mm"]}
        for row in table.to_pylist()
        if row["study"] == study and row["level"] is not None
    }


def describe(page: StudyPage, origins: Origins) -> dict[str, Any]:
    """The answer as plain JSON values, without pictures."""
    chances = dict(zip(LABEL_COLUMNS, page.probabilities, strict=True))
    return {
        "study": page.study,
        "use": "research only; not a medical device",
        "probabilities": chances,
        "warnings": list(page.warnings),
        "model": page.model,
        "levels": [
            {
                "level": attribution.level,
                "probability": chances[attribution.level],
                "slices": [
                    {"slice": z, **_origin(origins, attribution.level, z), "weight": w, "logit": x}
                    for z, w, x in zip(
                        attribution.slices, attribution.weights, attribution.logits, strict=True
                    )
                ],
                "key_slices": [key.z for key in attribution.keys],
            }
            for attribution in page.attributions
        ],
    }


def _origin(origins: Origins, level: str, z: int) -> Mapping[str, Any]:
    return origins.get((level, z), {"instance": None, "z_mm": None})


def render_page(page: StudyPage, origins: Origins) -> str:
    """One HTML page without any outside reference: probabilities, and the slices behind them."""
    chances = dict(zip(LABEL_COLUMNS, page.probabilities, strict=True))
    template = page_templates("training").get_template("study.html.j2")
    return template.render(
        page=page,
        chances=chances,
        levels=[
            {
                "level": attribution.level,
                "chance": chances[attribution.level],
                "bars": _bars(attribution),
                "keys": [
                    {
                        "picture": data_url(png_of(shade(key)), "png"),
                        "plain": data_url(png_of(grey(key.picture)), "png"),
                        "weight": attribution.weights[attribution.slices.index(key.z)],
                        **_origin(origins, attribution.level, key.z),
                    }
                    for key in attribution.keys
                ],
            }
            for attribution in sorted(
                page.attributions, key=lambda attribution: -chances[attribution.level]
            )
        ],
    )


def _bars(attribution: LevelAttribution) -> list[dict[str, Any]]:
    """The weight of each slice as a share of the largest, feet first."""
    most = max(attribution.weights)
    keys = {key.z for key in attribution.keys}
    return [
        {"height": w / most if most else 0.0, "slice": z, "weight": w, "key": z in keys}
        for z, w in zip(attribution.slices, attribution.weights, strict=True)
    ]
