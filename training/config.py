"""What the user may set for a run, checked once; all of it stands in the run folder.

One frozen dataclass a subject, `PRESETS` for whole sets. Nothing here reads a file.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from storage_schemas.errors import UsageError
from storage_schemas.localizer import SIZES

Recipe = Literal["seed"]
RECIPES: tuple[str, ...] = get_args(Recipe)
Family = Literal["vit", "resnet"]


@dataclass(frozen=True)
class SplitConfig:
    """How patients are split, once; the rest trains.

    Parameters
    ----------
    guard : float
        Share of the patients that judge each round.
    calibration : float
        Share that fits the map from logits to probabilities.
    test : float
        Share that is locked until `evaluate`.
    """

    guard: float = 0.1
    calibration: float = 0.1
    test: float = 0.2

    def __post_init__(self) -> None:
        held = (self.guard, self.calibration, self.test)
        if min(held) <= 0 or sum(held) >= 1:
            raise _invalid(f"held-out shares {held}: each above 0, together below 1")


@dataclass(frozen=True)
class InputConfig:
    """How three neighbouring slices of a crop become a model's input; saved beside the model.

    Parameters
    ----------
    size : int
        Pixels of the square input.
    crop_mm : float
        Side of the square around the crop's centre that it shows.
    low_hu, high_hu : float
        The window; below is 0 and above is 1 before `mean` and `std`.
    mean, std : tuple of float
        Of each channel: subtracted from the windowed values, then divided into them.
    trim_mm : float
        How much of a crop's lower and upper end is no input of its own: the pipeline's margin,
        where the neighbouring vertebra is seen better than this one.
    """

    size: int = 224
    crop_mm: float = 72.0
    low_hu: float = -500.0
    high_hu: float = 1300.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    trim_mm: float = 8.0

    def __post_init__(self) -> None:
        if self.size < 8 or not 8 <= self.crop_mm <= 500:
            raise _invalid(f"an input of {self.size} px for {self.crop_mm} mm")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise _invalid("mean and std are of three channels")
        if self.low_hu >= self.high_hu or min(self.std) <= 0 or self.trim_mm < 0:
            raise _invalid(
                f"window {self.low_hu} to {self.high_hu} HU, std {self.std}, trim {self.trim_mm} mm"
            )


@dataclass(frozen=True)
class ModelConfig:
    """The model that is made where no checkpoint is given.

    Parameters
    ----------
    family : {"vit", "resnet"}
        A ViT wants pretraining or many inputs; a residual network learns thin lines from few.
    patch : int
        Side of the picture that one feature stands for, in pixels; divides the input's size. Of a
        residual network 8, 16 or 32.
    width : int
        Features of a patch. Those of a residual network halve towards the input.
    depth : int
        Layers of a ViT, or blocks of each stage.
    heads : int
        Of a ViT; they divide the width.
    """

    family: Family = "vit"
    patch: int = 16
    width: int = 192
    depth: int = 6
    heads: int = 3

    def __post_init__(self) -> None:
        if min(self.patch, self.width, self.depth, self.heads) < 1:
            raise _invalid("patch, width, depth and heads are at least 1")
        if self.family not in get_args(Family):
            raise _invalid(f"the family is one of {', '.join(get_args(Family))}")
        if self.family == "vit" and self.width % self.heads:
            raise _invalid(f"no ViT of width {self.width} has {self.heads} heads")
        if self.family == "resnet" and (self.patch not in (8, 16, 32) or self.width % 8):
            raise _invalid("a residual network has patches of 8, 16 or 32 and a width of eights")


@dataclass(frozen=True)
class AugmentConfig:
    """How training inputs vary; each value is the largest deviation, drawn evenly.

    Parameters
    ----------
    rotate_degrees, shift_mm : float
    scale, gain, offset : float
        Scale and gain as a share of 1, the offset as a share of the window.
    noise : float
        Standard deviation, as a share of the window; its own size is drawn too.
    """

    rotate_degrees: float = 12.0
    shift_mm: float = 4.0
    scale: float = 0.1
    gain: float = 0.1
    offset: float = 0.05
    noise: float = 0.03


@dataclass(frozen=True)
class TrainConfig:
    """How a round is trained.

    Parameters
    ----------
    slices_per_round : int
        About how many slices a round has; patients are never cut.
    rounds : int or None
        Train at most so many rounds; None means until every training patient was seen.
    epochs : float
        Draws a round, as a multiple of its slices.
    batch_size : int
        Slices a step on one device.
    accumulation : int
        Batches a step of the optimizer.
    learning_rate, weight_decay : float
        AdamW's; the rate warms up, then falls to zero along a cosine in every round.
    warmup : float
        Share of a round's steps.
    broken_share : float
        Share of each batch that shows a fracture; 0 draws slices as they come.
    box_weight : float
        Of the loss that looks for the fracture inside its drawn box, beside that of the slice; 0
        leaves the boxes' places unused.
    weak_target : float
        What a slice of a broken vertebra is worth where nobody said if the slice shows it: about
        the share of such slices that do.
    """

    slices_per_round: int = 15_000
    rounds: int | None = None
    epochs: float = 3.0
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 3e-4
    weight_decay: float = 0.05
    warmup: float = 0.1
    broken_share: float = 0.3
    box_weight: float = 1.0
    weak_target: float = 0.35

    def __post_init__(self) -> None:
        counts = (self.slices_per_round, self.batch_size, self.accumulation)
        if min(counts) < 1 or self.epochs <= 0 or (self.rounds is not None and self.rounds < 1):
            raise _invalid("rounds, slices, epochs, batch size and accumulation must be positive")
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.box_weight < 0:
            raise _invalid("the learning rate is positive, weight decay and box weight at least 0")
        if not (0 <= self.warmup < 1 and 0 <= self.broken_share < 1 and 0 <= self.weak_target <= 1):
            raise _invalid("warm-up, broken share and weak target are shares")


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Parameters
    ----------
    recipe : {"seed"}
    seed : int
        Of the splits, the rounds, the weights and the draws.
    """

    recipe: Recipe = "seed"
    seed: int = 0
    split: SplitConfig = field(default_factory=SplitConfig)
    inputs: InputConfig = field(default_factory=InputConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "RunConfig":
        """Read what `to_json` wrote; raises UsageError ``config-invalid`` on anything else."""
        return cast(RunConfig, _from_json(cls, document))

    def override(self, values: Mapping[str, Mapping[str, Any]]) -> "RunConfig":
        """A copy with some fields of some parts changed, e.g. ``{"train": {"epochs": 2}}``."""
        parts = {part: replace(getattr(self, part), **to) for part, to in values.items() if to}
        return replace(self, **parts)


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


PRESETS: Mapping[str, RunConfig] = MappingProxyType(
    {
        "default": RunConfig(),
        # Learns a phantom cohort of 200 small studies in two minutes on two cores.
        "demo": RunConfig(
            inputs=InputConfig(size=144),
            model=ModelConfig(family="resnet", patch=16, width=96, depth=1),
            augment=AugmentConfig(gain=0.05, noise=0.02),
            train=TrainConfig(slices_per_round=2_500, epochs=2.5, learning_rate=2e-3),
        ),
    }
)


def inputs_from_json(document: Mapping[str, Any]) -> InputConfig:
    """Read an `InputConfig` as it stands beside a model; UsageError ``config-invalid`` if none."""
    return cast(InputConfig, _from_json(InputConfig, document))


def _from_json(kind: type, document: Mapping[str, Any]) -> Any:
    known = {entry.name: entry for entry in fields(kind)}
    if not isinstance(document, Mapping) or set(document) != set(known):
        raise _invalid(f"{kind.__name__} has the fields {', '.join(known)}, not {list(document)}")
    defaults = kind()
    values = {
        name: _from_json(type(getattr(defaults, name)), value)
        if is_dataclass(getattr(defaults, name))
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in document.items()
    }
    return kind(**values)


def _invalid(detail: str) -> UsageError:
    return UsageError("config-invalid", detail)
