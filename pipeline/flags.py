"""Command-line flags of the pipeline's settings, and parsers of their values."""

from typing import Any

from pipeline.config import NetworkFile, StudyConfig
from presentation.setting_flags import SettingFlags
from storage_schemas.errors import UsageError
from storage_schemas.vertebrae import MASK_LABELS, parse_levels


def read_network(value: Any) -> NetworkFile | Any:
    """Read the localizer at a path or URL; other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    from pipeline.vertebrae.onnx_network import choose_network

    return choose_network(value)


def read_levels(value: Any) -> tuple[str, ...]:
    """Parse levels from a comma-separated text or a list, into anatomical order."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    try:
        return parse_levels(text)
    except UsageError as error:
        raise UsageError(error.kind, f"vertebrae: {error.detail}") from None


STUDY_SETTINGS = SettingFlags(
    StudyConfig,
    flags={
        "--masks": "masks",
        "--mask-labels": "mask_labels",
        "--localizer": "localizer",
        "--vertebrae": "vertebrae",
        "--margin": "margin_mm",
        "--strict": "strict",
        "--hash-keys": "hash_keys",
        "--series": "series",
    },
    choices={"mask_labels": MASK_LABELS},
    readers={"localizer": read_network, "vertebrae": read_levels},
    metavars={
        "masks": "URL",
        "localizer": "model.onnx",
        "vertebrae": "C1,...",
        "series": "UID|N|REGEX",
    },
)
