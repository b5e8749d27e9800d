"""DICOM studies on an object store become vertebra crops in a store of Zarr shards.

`run_pipeline` runs it from Python, with a `StudyConfig`; ``cspine-pipeline`` from the shell.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import run_pipeline
    from pipeline.config import StudyConfig

    __version__: str

__all__ = ["StudyConfig", "__version__", "run_pipeline"]

_HOMES = {"StudyConfig": "pipeline.config", "run_pipeline": "pipeline.api"}


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("cspine")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
