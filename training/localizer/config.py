"""Settings for the training of a localizer.

Not here: the settings of a run (`training.config`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Annotated, Any

from presentation.setting_types import limits
from presentation.settings import check
from storage_schemas.errors import UsageError
from storage_schemas.localizer_card import SIZES

Count = Annotated[int, limits("N", ge=1)]
Share = Annotated[float, limits("share", ge=0, lt=1)]
Millimetres = Annotated[float, limits("mm", ge=0)]


@dataclass(frozen=True)
class CubeAugmentConfig:
    """How overviews vary in training; deviations are sampled uniformly up to the value given.

    Parameters
    ----------
    rotate_degrees : float
        Largest rotation about each of the three axes, in degrees.
    shift_mm : float
        Largest shift along each axis, in mm.
    scale : float
        Largest deviation of the scale from 1.
    gain : float
        Largest deviation of the contrast from 1.
    offset_hu : float
        Largest offset of the voxels, in HU.
    noise_hu : float
        Largest standard deviation of Gaussian noise, in HU.
    """

    rotate_degrees: Annotated[float, limits("degrees", ge=0, le=180)] = 12.0
    shift_mm: Millimetres = 20.0
    scale: Share = 0.15
    gain: Annotated[float, limits("share", ge=0)] = 0.1
    offset_hu: Annotated[float, limits("HU", ge=0)] = 50.0
    noise_hu: Annotated[float, limits("HU", ge=0)] = 60.0

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class LocalizerConfig:
    """All settings of the training of a localizer.

    Parameters
    ----------
    size : int
        Side of the cube that the network takes, in voxels: 32, 64 or 128.
    block : int
        Side of the block of voxels that becomes one position of the network, in voxels.
    channels : tuple of int
        Channels of each stage of the network; each stage after the first halves the resolution.
    units : int
        Residual units of a stage.
    steps : int
        Optimizer steps.
    batch_size : int
        Overviews per step.
    learning_rate : float
        Peak learning rate of AdamW; the rate warms up, then falls to zero along a cosine.
    weight_decay : float
        Weight decay of AdamW.
    warmup : float
        Share of the steps in which the learning rate rises.
    settle : float
        Share of the steps, at the end, without rotation, scaling and shift. Those sample the labels
        by nearest neighbour, which frays structures that are one voxel thin.
    ema_decay : float
        Decay of the exponential moving average (EMA) of the weights, per step; the averaged weights
        are exported.
    folds : int
        Groups that the patients are divided into.
    fold : int
        Number of the group that is held out, from 0.
    margin_mm : float
        Margin around a vertebra's extent where the held-out boxes are measured, in mm; the same as
        the pipeline's margin.
    seed : int
        Seed of the folds, the weights and everything sampled.
    augment : CubeAugmentConfig
        How overviews vary in training.
    """

    size: Annotated[int, limits("voxels")] = 128
    block: Annotated[int, limits("voxels", ge=1)] = 2
    channels: tuple[Count, ...] = (32, 64, 128, 256)
    units: Count = 2
    steps: Annotated[int, limits("steps", ge=1)] = 5_000
    batch_size: Annotated[int, limits("overviews", ge=1)] = 4
    learning_rate: Annotated[float, limits("rate", gt=0)] = 2e-3
    weight_decay: Annotated[float, limits("rate", ge=0)] = 0.01
    warmup: Share = 0.05
    settle: Share = 0.1
    ema_decay: Share = 0.995
    folds: Annotated[int, limits("groups", ge=2)] = 5
    fold: Annotated[int, limits("group", ge=0)] = 0
    margin_mm: Millimetres = 8.0
    seed: Annotated[int, limits("seed", ge=0, le=2**63 - 1)] = 0
    augment: CubeAugmentConfig = field(default_factory=CubeAugmentConfig)

    def __post_init__(self) -> None:
        check(self)
        if self.size not in SIZES:
            raise _invalid(f"size: expected {', '.join(map(str, SIZES))}, got {self.size}")
        positions = self.block << (len(self.channels) - 1)
        if len(self.channels) < 2 or self.size % positions:
            raise _invalid(
                f"size: {len(self.channels)} stages of blocks of {self.block} voxels do not fit"
                f" {self.size}"
            )
        if self.fold >= self.folds:
            raise _invalid(f"fold: expected less than the {self.folds} folds, got {self.fold}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"channels": list(self.channels)}


LOCALIZER_OLD_NAMES: Mapping[str, str] = MappingProxyType({"average": "ema_decay"})
"""Names that fields of `LocalizerConfig` had in earlier versions, and their names of today."""

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
            ema_decay=0.99,
            augment=CubeAugmentConfig(rotate_degrees=6.0, shift_mm=8.0, scale=0.08),
        ),
    }
)


def _invalid(detail: str) -> UsageError:
    return UsageError("config-invalid", detail)
