"""Convert DICOM studies on any object store to a Zarr store with one crop per vertebra.

`run_pipeline` is the Python function, with the settings of a `StudyConfig`, and ``cspine-pipeline``
the command. Not for training: this package reads no model but the localizer's ONNX file.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import read_config, run_pipeline
    from pipeline.config import StudyConfig

    __version__: str

__all__ = ["StudyConfig", "__version__", "read_config", "run_pipeline"]

_HOMES = {
    "StudyConfig": "pipeline.config",
    "read_config": "pipeline.api",
    "run_pipeline": "pipeline.api",
}


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("cspine")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
