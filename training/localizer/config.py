"""What the user may set for the training of a localizer, checked once.

Not here: the settings of a run (`training.config`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from storage_schemas.errors import UsageError
from storage_schemas.localizer_card import SIZES


@dataclass(frozen=True)
class CubeAugmentConfig:
    """How overviews vary in training; each value is the largest deviation, drawn evenly.

    Parameters
    ----------
    rotate_degrees : float
        About each of the three axes.
    shift_mm : float
        Along each axis.
    scale, gain : float
        As a share of 1.
    offset_hu : float
    noise_hu : float
        Standard deviation; its own size is drawn too.
    """

    rotate_degrees: float = 12.0
    shift_mm: float = 20.0
    scale: float = 0.15
    gain: float = 0.1
    offset_hu: float = 50.0
    noise_hu: float = 60.0


@dataclass(frozen=True)
class LocalizerConfig:
    """All settings of a localizer; beside it in its card stands what came of them.

    Parameters
    ----------
    size : int
        Voxels along each side of the cube that it sees.
    block : int
        Voxels along each side of what the network takes for one place.
    channels : tuple of int
        Of the network's stages; each after the first has half the places along each side.
    units : int
        Residual units of a stage.
    steps, batch_size : int
        Steps of the optimizer, and overviews a step.
    learning_rate, weight_decay : float
        AdamW's; the rate warms up, then falls to zero along a cosine.
    warmup : float
        Share of the steps.
    settle : float
        Share of the steps, the last, in which cubes are no longer turned, scaled or shifted: their
        labels are sampled by nearest neighbour when they are, and what is a voxel thin frays.
    average : float
        How much of the averaged weights, which are the ones exported, each step leaves as it is.
    folds, fold : int
        Groups of patients, and the one that is held out.
    margin_mm : float
        Around a vertebra's extent, where the held-out boxes are measured: the pipeline's margin.
    seed : int
        Of the folds, the weights and the draws.
    """

    size: int = 128
    block: int = 2
    channels: tuple[int, ...] = (32, 64, 128, 256)
    units: int = 2
    steps: int = 5_000
    batch_size: int = 4
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    settle: float = 0.1
    average: float = 0.995
    folds: int = 5
    fold: int = 0
    margin_mm: float = 8.0
    seed: int = 0
    augment: CubeAugmentConfig = field(default_factory=CubeAugmentConfig)

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise _invalid(f"a localizer sees {', '.join(map(str, SIZES))} voxels, not {self.size}")
        places = self.block << (len(self.channels) - 1)
        if len(self.channels) < 2 or min(self.channels) < 1 or self.block < 1 or self.size % places:
            raise _invalid(f"{len(self.channels)} stages of blocks of {self.block} do not fit")
        if min(self.steps, self.batch_size, self.units) < 1 or self.learning_rate <= 0:
            raise _invalid("steps, batch size, units and learning rate must be positive")
        shares = (self.warmup, self.settle, self.average)
        if min(shares) < 0 or max(shares) >= 1 or self.weight_decay < 0:
            raise _invalid("warm-up, settle and average are shares, weight decay is at least 0")
        if self.folds < 2 or not 0 <= self.fold < self.folds:
            raise _invalid(f"fold {self.fold} of {self.folds}: at least 2, numbered from 0")
        if self.margin_mm < 0:
            raise _invalid(f"a margin of {self.margin_mm} mm")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"channels": list(self.channels)}


LOCALIZER_PRESETS: Mapping[str, LocalizerConfig] = MappingProxyType(
    {
        "default": LocalizerConfig(),
        # Learns a phantom cohort of 200 small studies in 320 seconds of one core.
        "demo": LocalizerConfig(
            size=64,
            channels=(32, 64, 128),
            steps=1_200,
            batch_size=1,
            learning_rate=7e-3,
            settle=0.3,
            average=0.99,
            augment=CubeAugmentConfig(rotate_degrees=6.0, shift_mm=8.0, scale=0.08),
        ),
    }
)


def _invalid(detail: str) -> UsageError:
    return UsageError("config-invalid", detail)
