"""What the user may set for a run, checked once; all of it stands in the run folder.

One frozen dataclass a subject, `PRESETS` for whole sets. Nothing here reads a file.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from storage_schemas.errors import UsageError

RecipeName = Literal["boost", "seed", "joint", "sequence"]
RECIPES: tuple[str, ...] = get_args(RecipeName)
Family = Literal["vit", "resnet"]
Order = Literal["shuffled", "site"]
ORDERS: tuple[str, ...] = get_args(Order)
Window = tuple[float, float]
Pooling = Literal["lstm", "attention"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


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
    folds : int
        Parts of all patients but the locked ones, each of which is held out by one run; then the
        shares of guard and calibration are half of the part each. 0 makes no such parts.
    fold : int
        The part that is held out, from 1.
    """

    guard: float = 0.1
    calibration: float = 0.1
    test: float = 0.2
    folds: int = 0
    fold: int = 0

    def __post_init__(self) -> None:
        held = (self.guard, self.calibration, self.test)
        if min(held) <= 0 or sum(held) >= 1:
            raise _invalid(f"held-out shares {held}: each above 0, together below 1")
        if self.folds and (self.folds < 2 or not 0 <= self.fold <= self.folds):
            raise _invalid(f"fold {self.fold} of {self.folds}: 2 folds at least")


@dataclass(frozen=True)
class InputConfig:
    """How native slices of a crop become a model's channels; saved beside the model.

    Parameters
    ----------
    size : int
        Pixels of the square input.
    crop_mm : float
        Side of the square around the crop's centre that it shows.
    windows : tuple of (float, float)
        Lowest and highest HU, which are 0 and 1 before `mean` and `std`. Under one window the
        channels are a slice and its two neighbours; under three they are the slice alone, once
        under each.
    mean, std : tuple of float
        Of the three middle channels: subtracted from the windowed values, then divided into them.
        Further neighbours take the average of the three.
    trim_mm : float
        How much of a crop's lower and upper end is no input of its own: the pipeline's margin,
        where the neighbouring vertebra is seen better than this one.
    neighbours : int
        Slices that are channels, an odd number of 3 or more.
    mask : bool
        Whether the vertebra's mask is one more channel; 0 where none is known.
    """

    size: int = 224
    crop_mm: float = 72.0
    windows: tuple[Window, ...] = ((-500.0, 1300.0),)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    trim_mm: float = 8.0
    neighbours: int = 3
    mask: bool = False

    @property
    def channels(self) -> int:
        """Of the input."""
        return self.neighbours + self.mask

    def __post_init__(self) -> None:
        if self.size < 8 or not 8 <= self.crop_mm <= 500:
            raise _invalid(f"an input of {self.size} px for {self.crop_mm} mm")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise _invalid("mean and std are of three channels")
        if len(self.windows) not in (1, 3) or any(len(window) != 2 for window in self.windows):
            raise _invalid("one window of three neighbouring slices, or three windows of one slice")
        if any(low >= high for low, high in self.windows):
            raise _invalid(f"windows {self.windows}: the lower HU come first")
        if min(self.std) <= 0 or self.trim_mm < 0:
            raise _invalid(f"std {self.std}, trim {self.trim_mm} mm")
        if self.neighbours < 3 or not self.neighbours % 2:
            raise _invalid(f"an odd number of neighbours from 3, not {self.neighbours}")
        if self.neighbours > 3 and len(self.windows) > 1:
            raise _invalid("several windows show one slice, so there are no further neighbours")


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
class SequenceConfig:
    """How a vertebra is read as a sequence; of the recipe `sequence` alone.

    Parameters
    ----------
    positions : int
        Slices of a vertebra that are looked at, at most.
    drawn : int
        Of these, how many are drawn each time that a vertebra is trained on: fewer slices of more
        vertebrae make a better step.
    pooling : {"lstm", "attention"}
        Whether positions read each other before they are weighed.
    width, layers : int
        Features a direction, and layers, of the LSTM over the positions.
    patient_width : int
        Features a direction of the LSTM over the seven vertebrae.
    dropout : float
        Before each of the two.
    frozen : bool
        Train the heads alone, on features that are kept.
    head_epochs : float
        Draws of the patients for the heads, which learn last and from features.
    head_batch : int
        Patients a step of them.
    head_rate : float
        Their peak learning rate.
    """

    positions: int = 15
    drawn: int = 8
    pooling: Pooling = "lstm"
    width: int = 256
    layers: int = 2
    patient_width: int = 32
    dropout: float = 0.1
    frozen: bool = False
    head_epochs: float = 20.0
    head_batch: int = 16
    head_rate: float = 1e-3

    def __post_init__(self) -> None:
        counts = (
            self.positions,
            self.drawn,
            self.width,
            self.layers,
            self.patient_width,
            self.head_batch,
        )
        if min(counts) < 1 or self.head_epochs < 0 or self.head_rate <= 0:
            raise _invalid("positions, widths, layers, batch and rate of the heads are positive")
        if self.pooling not in POOLINGS or not 0 <= self.dropout < 1:
            raise _invalid(f"pooling by {' or '.join(POOLINGS)}, dropout a share below 1")


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
    forget_mask : float
        Share of the vertebrae whose mask is hidden, so that a model does well without.
    """

    rotate_degrees: float = 12.0
    shift_mm: float = 4.0
    scale: float = 0.1
    gain: float = 0.1
    offset: float = 0.05
    noise: float = 0.03
    forget_mask: float = 0.25


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
    order : {"shuffled", "site"}
        Whether every round resembles the whole, or one site's patients come after another's.
    batch_size : int
        Slices that are on the devices at once.
    accumulation : int
        Batches a step of the optimizer. Several devices share the batches of a step, so that steps
        and results are the same on any number of them.
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
    checkpoint_steps : int
        A round that is killed goes on from the last of so many steps.
    """

    slices_per_round: int = 15_000
    rounds: int | None = None
    order: Order = "shuffled"
    epochs: float = 3.0
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 3e-4
    weight_decay: float = 0.05
    warmup: float = 0.1
    broken_share: float = 0.3
    box_weight: float = 1.0
    weak_target: float = 0.35
    checkpoint_steps: int = 500

    def __post_init__(self) -> None:
        counts = (self.slices_per_round, self.batch_size, self.accumulation, self.checkpoint_steps)
        if self.order not in ORDERS:
            raise _invalid(f"the order is one of {', '.join(ORDERS)}")
        if min(counts) < 1 or self.epochs <= 0 or (self.rounds is not None and self.rounds < 1):
            raise _invalid("rounds, slices, epochs, batch size and accumulation must be positive")
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.box_weight < 0:
            raise _invalid("the learning rate is positive, weight decay and box weight at least 0")
        if not (0 <= self.warmup < 1 and 0 <= self.broken_share < 1 and 0 <= self.weak_target <= 1):
            raise _invalid("warm-up, broken share and weak target are shares")


@dataclass(frozen=True)
class BoostConfig:
    """What keeps a round from making the model worse; what it is not, is plain continuation.

    Parameters
    ----------
    replay : float
        Share of a round's inputs that come from patients of earlier rounds; 0 replays none.
    average : float
        Share of a round's steps over which the moving average of the weights looks back; 0 keeps
        none.
    rate_fall : float
        The peak rate of a round, as a multiple of that of the round before.
    layer_decay : float
        The rate of a layer, as a multiple of that of the layer above it, once there is something
        learnt that can be lost.
    step_lengths : tuple of float
        How far from the incumbent towards what a round trained the candidates lie.
    guarded : bool
        Whether a round is accepted only where the guard patients gain by it; otherwise every round
        is, and there is no candidate but what it trained.
    caution : float
        How many times its own standard error a gain must exceed. 1 asks for evidence; 0 takes
        whatever has a lower loss, and lets small gains add up that few guard patients cannot prove.
    """

    replay: float = 0.4
    average: float = 0.2
    rate_fall: float = 0.8
    layer_decay: float = 0.8
    step_lengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    guarded: bool = True
    caution: float = 1.0

    def __post_init__(self) -> None:
        if self.caution < 0:
            raise _invalid(f"caution {self.caution}: at least 0")
        if not (0 <= self.replay < 1 and 0 <= self.average <= 1):
            raise _invalid("replay and average are shares")
        if not (0 < self.rate_fall <= 1 and 0 < self.layer_decay <= 1):
            raise _invalid("the fall of the rate and the decay by layer are above 0, at most 1")
        if any(not 0 < length <= 1 for length in self.step_lengths):
            raise _invalid(f"step lengths {self.step_lengths}: each above 0, at most 1")


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Parameters
    ----------
    recipe : {"boost", "seed", "joint", "sequence"}
        See `training.rounds.recipes`.
    seed : int
        Of the splits, the rounds, the weights and the draws.
    boost : BoostConfig
        Of the recipes `boost` and `sequence`; `seed` and `joint` take none of it.
    """

    recipe: RecipeName = "boost"
    seed: int = 0
    split: SplitConfig = field(default_factory=SplitConfig)
    inputs: InputConfig = field(default_factory=InputConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    boost: BoostConfig = field(default_factory=BoostConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)

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


PRESETS: Mapping[str, RunConfig] = MappingProxyType(
    {
        "default": RunConfig(),
        # Learns a phantom cohort of 200 small studies in three minutes on two cores.
        "demo": RunConfig(
            inputs=InputConfig(size=144),
            model=ModelConfig(family="resnet", patch=16, width=96, depth=1),
            augment=AugmentConfig(gain=0.05, noise=0.02),
            train=TrainConfig(slices_per_round=2_500, epochs=2.5, learning_rate=2e-3),
            boost=BoostConfig(step_lengths=(0.5, 1.0)),
            sequence=SequenceConfig(drawn=1, width=32, patient_width=16, dropout=0.4),
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
        else _frozen(value)
        for name, value in document.items()
    }
    return kind(**values)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _invalid(detail: str) -> UsageError:
    return UsageError("config-invalid", detail)
