"""The on-disk format of a store, and its reader; the contract between pipeline and training.

`StudyStore` opens a store at any fsspec URL, and reads crops, overviews, records and tables. Not
for DICOM (`pipeline`) or models (`training`): this package imports neither, nor what they need.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage_schemas.crops import Crop
    from storage_schemas.errors import (
        CspineError,
        RunError,
        SliceError,
        StoreError,
        StudyError,
        UsageError,
    )
    from storage_schemas.geometry import StackGeometry
    from storage_schemas.records import StudyRecord
    from storage_schemas.store import StudyStore
    from storage_schemas.study_key import StudyKey
    from storage_schemas.targets import COMPETITION, Targets

    __version__: str

__all__ = [
    "COMPETITION",
    "Crop",
    "CspineError",
    "RunError",
    "SliceError",
    "StackGeometry",
    "StoreError",
    "StudyError",
    "StudyKey",
    "StudyRecord",
    "StudyStore",
    "Targets",
    "UsageError",
    "__version__",
]

_HOMES = {
    "COMPETITION": "targets",
    "Crop": "crops",
    "StackGeometry": "geometry",
    "StudyKey": "study_key",
    "StudyRecord": "records",
    "StudyStore": "store",
    "Targets": "targets",
}


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is first used, so that the import itself is cheap."""
    if name == "__version__":
        from importlib.metadata import version

        return version("cspine")
    if name in __all__:
        return getattr(import_module(f"storage_schemas.{_HOMES.get(name, 'errors')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
