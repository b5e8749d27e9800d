"""Train fracture classifiers on the vertebra crops of a store, and predict with them.

`boost`, `evaluate`, `predict` and `train_localizer` run it from Python, with a `RunConfig` or a
`LocalizerConfig`; ``cspine-training`` from the shell.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.api import boost, evaluate, predict, read_config, train_localizer
    from training.config import PRESETS, RunConfig
    from training.localizer.config import LOCALIZER_PRESETS, LocalizerConfig

    __version__: str

__all__ = [
    "LOCALIZER_PRESETS",
    "PRESETS",
    "LocalizerConfig",
    "RunConfig",
    "__version__",
    "boost",
    "evaluate",
    "predict",
    "read_config",
    "train_localizer",
]

_HOMES = {
    "LOCALIZER_PRESETS": "training.localizer.config",
    "LocalizerConfig": "training.localizer.config",
    "PRESETS": "training.config",
    "RunConfig": "training.config",
}


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("cspine")
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, "training.api")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
