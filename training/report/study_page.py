"""The prediction for one study as a JSON document and as a self-contained HTML page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from presentation.figures import png_of
from presentation.pages import data_url, page_templates
from storage_schemas.store import StudyStore
from training.explanation.attribution import LevelAttribution
from training.explanation.overlay import grey, shade


@dataclass(frozen=True)
class StudyPage:
    """Contents of a study page.

    Parameters
    ----------
    study : str
        Key of the study.
    probabilities : mapping of str to float
        Fracture probabilities by target, the patient's first.
    warnings : tuple of str
        Reasons why the prediction is less reliable.
    attributions : tuple of LevelAttribution
        Slice weights and heat maps of the levels that have a crop.
    model : str
        Kind of the model that the attributions belong to.
    """

    study: str
    probabilities: Mapping[str, float]
    warnings: tuple[str, ...]
    attributions: tuple[LevelAttribution, ...]
    model: str


Origins = Mapping[tuple[str, int], Mapping[str, Any]]


def find_origins(store: StudyStore, study: str) -> Origins:
    """Look up instance number and z position in mm of each slice, by level and crop index."""
    table = store.read_table("slices").select(
        ["study", "level", "crop_z", "instance_number", "z_mm"]
    )
    return {
        (row["level"], row["crop_z"]): {"instance": row["instance_number"], "z_mm": row["z_mm"]}
        for row in table.to_pylist()
        if row["study"] == study and row["level"] is not None
    }


def describe(page: StudyPage, origins: Origins) -> dict[str, Any]:
    """Return the prediction as JSON values, without pictures."""
    probabilities = page.probabilities
    return {
        "study": page.study,
        "use": "research only; not a medical device",
        "probabilities": dict(probabilities),
        "warnings": list(page.warnings),
        "model": page.model,
        "levels": [
            {
                "level": attribution.level,
                "probability": probabilities[attribution.level],
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
    """Render the HTML page, without external references."""
    probabilities = page.probabilities
    template = page_templates("training").get_template("study.html.j2")
    return template.render(
        page=page,
        probabilities=probabilities,
        levels=[
            {
                "level": attribution.level,
                "probability": probabilities[attribution.level],
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
                page.attributions, key=lambda attribution: -probabilities[attribution.level]
            )
        ],
    )


def _bars(attribution: LevelAttribution) -> list[dict[str, Any]]:
    """Bars of the slice weights relative to the largest, from inferior to superior."""
    most = max(attribution.weights)
    keys = {key.z for key in attribution.keys}
    return [
        {"height": w / most if most else 0.0, "slice": z, "weight": w, "key": z in keys}
        for z, w in zip(attribution.slices, attribution.weights, strict=True)
    ]
