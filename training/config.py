"""Settings of a training run: one frozen dataclass a subject, `PRESETS` for whole sets.

A field's type states its range and unit, its description stands in the ``Parameters`` section of
its class; flags, configuration files and help are made of both (`presentation.settings`). All
settings of a run are written to ``run.json`` in the run folder. Nothing here reads a file.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from presentation.setting_types import limits
from presentation.settings import check, read_settings
from storage_schemas.errors import UsageError

Order = Literal["shuffled", "site"]
Pooling = Literal["lstm", "attention"]
Window = tuple[float, float]

Share = Annotated[float, limits("share", ge=0, le=1)]
PartialShare = Annotated[float, limits("share", ge=0, lt=1)]
"""A share that leaves something over."""
Factor = Annotated[float, limits("factor", gt=0, le=1)]
Rate = Annotated[float, limits("rate", gt=0)]
Count = Annotated[int, limits("N", ge=1)]
Slices = Annotated[int, limits("slices", ge=1)]
Millimetres = Annotated[float, limits("mm", ge=0)]
Pixels = Annotated[int, limits("px", ge=1)]
Seed = Annotated[int, limits("seed", ge=0, le=2**63 - 1)]


@dataclass(frozen=True)
class SplitConfig:
    """How patients are split into training, calibration, guard and test sets, once for a run.

    Parameters
    ----------
    guard : float
        Share of the patients in the guard set, which validates each round.
    calibration : float
        Share of the patients that fit the calibration of logits to probabilities.
    test : float
        Share of the patients in the test set, which is locked until `evaluate`.
    folds : int
        Number of folds of cross-validation over all patients outside the test set; 0 for none.
        With folds, calibration and guard are half of the held-out fold each.
    fold : int
        Number of the held-out fold, from 1.
    """

    guard: Annotated[float, limits("share", gt=0, lt=1)] = 0.1
    calibration: Annotated[float, limits("share", gt=0, lt=1)] = 0.1
    test: Annotated[float, limits("share", gt=0, lt=1)] = 0.2
    folds: Annotated[int, limits("folds", ge=0)] = 0
    fold: Annotated[int, limits("fold", ge=0)] = 0

    def __post_init__(self) -> None:
        check(self)
        held = (self.guard, self.calibration, self.test)
        if sum(held) >= 1:
            raise _invalid(f"guard, calibration and test shares {held} must sum to less than 1")
        if self.folds == 1 or self.fold > self.folds:
            raise _invalid(f"fold {self.fold} of {self.folds}: cross-validation needs 2 folds")


@dataclass(frozen=True)
class InputConfig:
    """How native slices of a crop become the channels of a model; saved beside the model.

    Parameters
    ----------
    size : int
        Side of the square input, in pixels.
    crop_mm : float
        Side of the square around the crop's centre that the input shows, in mm.
    windows : tuple of (float, float)
        Lowest and highest HU of each window, which become 0 and 1 before `mean` and `std` apply.
        With one window the channels are a slice and its neighbours; with three windows they are
        the slice alone, once under each window.
    mean : tuple of float
        Mean of each of the three middle channels, subtracted from the windowed values. Further
        neighbours use the average of the three.
    std : tuple of float
        Standard deviation of each of the three middle channels, by which values are divided.
        Further neighbours use the average of the three.
    trim_mm : float
        Length at the lower and upper end of a crop whose slices are no inputs of their own, in mm:
        the pipeline's margin, where the neighbouring vertebra fills the slice.
    neighbours : int
        Number of consecutive slices that become channels: odd, 3 or more; above 3 only for models
        of sequences.
    mask : bool
        Whether the vertebra's mask is an additional channel, 0 where no mask is known; only for
        models of sequences.
    """

    size: Annotated[int, limits("px", ge=8)] = 224
    crop_mm: Annotated[float, limits("mm", ge=8, le=500)] = 72.0
    windows: Annotated[tuple[Window, ...], limits("HU")] = ((-500.0, 1300.0),)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Rate, Rate, Rate] = (0.5, 0.5, 0.5)
    trim_mm: Millimetres = 8.0
    neighbours: Annotated[int, limits("slices", ge=3)] = 3
    mask: bool = False

    @property
    def channels(self) -> int:
        """Number of channels of the input."""
        return self.neighbours + self.mask

    def __post_init__(self) -> None:
        check(self)
        if len(self.windows) not in (1, 3):
            raise _invalid(f"windows: expected one window or three, got {len(self.windows)}")
        if any(low >= high for low, high in self.windows):
            raise _invalid(f"windows: the lower HU of {self.windows} must come first")
        if not self.neighbours % 2:
            raise _invalid(f"neighbours: expected an odd number, got {self.neighbours}")
        if self.neighbours > 3 and len(self.windows) > 1:
            raise _invalid("neighbours: expected 3 with three windows, which show one slice")


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the model that is made where no checkpoint is given.

    Parameters
    ----------
    family : str
        Family of the image encoder, from `training.models.families.FAMILIES`. A ViT needs
        pretraining or many inputs; a residual network learns thin fracture lines from few.
    patch : int
        Side of the image area that one feature represents, in pixels; divides the input's size. A
        residual network takes 8, 16 or 32.
    width : int
        Features of a patch. A residual network halves them towards the input.
    depth : int
        Layers of a ViT, or blocks of each stage of a residual network.
    heads : int
        Attention heads of a ViT; they divide the width.
    """

    family: str = "vit"
    patch: Pixels = 16
    width: Annotated[int, limits("features", ge=1)] = 192
    depth: Annotated[int, limits("layers", ge=1)] = 6
    heads: Annotated[int, limits("heads", ge=1)] = 3

    def __post_init__(self) -> None:
        check(self)
        if self.family == "vit" and self.width % self.heads:
            raise _invalid(f"no ViT of width {self.width} has {self.heads} heads")
        if self.family == "resnet" and (self.patch not in (8, 16, 32) or self.width % 8):
            raise _invalid("a residual network has patches of 8, 16 or 32 and a width of eights")


@dataclass(frozen=True)
class SequenceConfig:
    """How a vertebra is read as a sequence of slices; only the recipe `sequence` uses it.

    Parameters
    ----------
    positions : int
        Most slices of a vertebra that the model reads.
    sampled : int
        Slices sampled per vertebra and training step: fewer slices of more vertebrae make a better
        step.
    pooling : {"lstm", "attention"}
        Layer that combines the slices of a vertebra before they are weighted: an LSTM, or attention
        alone.
    width : int
        Features of the LSTM over the slices, in each direction.
    layers : int
        Layers of the LSTM over the slices.
    patient_width : int
        Features of the LSTM over the vertebrae, in each direction.
    dropout : float
        Dropout before each of the two LSTMs.
    frozen : bool
        Whether to train the heads alone, on stored features of a frozen encoder.
    head_epochs : float
        Passes over the patients in each round for the heads, which train last and on features.
    head_batch : int
        Patients per step of the heads.
    head_rate : float
        Peak learning rate of the heads.
    """

    positions: Slices = 15
    sampled: Slices = 8
    pooling: Pooling = "lstm"
    width: Annotated[int, limits("features", ge=1)] = 256
    layers: Annotated[int, limits("layers", ge=1)] = 2
    patient_width: Annotated[int, limits("features", ge=1)] = 32
    dropout: PartialShare = 0.1
    frozen: bool = False
    head_epochs: Annotated[float, limits("epochs", ge=0)] = 20.0
    head_batch: Annotated[int, limits("patients", ge=1)] = 16
    head_rate: Rate = 1e-3

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class AugmentConfig:
    """How training inputs vary; deviations are sampled uniformly up to the value given.

    Parameters
    ----------
    rotate_degrees : float
        Largest in-plane rotation, in degrees.
    shift_mm : float
        Largest shift along each axis of the plane, in mm.
    scale : float
        Largest deviation of the scale from 1.
    gain : float
        Largest deviation of the contrast from 1.
    offset : float
        Largest offset of the brightness, as a share of the window.
    noise : float
        Largest standard deviation of Gaussian noise, as a share of the window.
    forget_mask : float
        Share of the vertebrae whose mask is hidden, so that the model works without masks.
    """

    rotate_degrees: Annotated[float, limits("degrees", ge=0, le=180)] = 12.0
    shift_mm: Millimetres = 4.0
    scale: PartialShare = 0.1
    gain: Annotated[float, limits("share", ge=0)] = 0.1
    offset: Annotated[float, limits("share", ge=0)] = 0.05
    noise: Annotated[float, limits("share", ge=0)] = 0.03
    forget_mask: Share = 0.25

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TrainConfig:
    """How a round is trained.

    Parameters
    ----------
    slices_per_round : int
        Approximate number of slices in a round; a patient is never divided between rounds.
    rounds : int or None
        Largest number of rounds; without it, rounds go on until every training patient was used.
    epochs : float
        Slices sampled in a round, as a multiple of its number of slices.
    order : {"shuffled", "site"}
        Whether every round resembles the whole cohort, or the patients of one site come after
        those of another.
    batch_size : int
        Slices that are on the devices at once.
    accumulation : int
        Batches per optimizer step. Several devices share the batches of a step, so that steps and
        results are the same on any number of them.
    learning_rate : float
        Peak learning rate of AdamW in the first round. In every round the rate warms up, then
        falls to zero along a cosine.
    weight_decay : float
        Weight decay of AdamW.
    warmup : float
        Share of a round's steps in which the learning rate rises.
    fractured_share : float
        Share of each batch that shows a fracture; 0 samples slices as they come.
    box_weight : float
        Weight of the loss that locates a fracture inside its bounding box, relative to the loss of
        the slice; 0 leaves the boxes unused.
    weak_target : float
        Soft label for slices of a fractured vertebra without bounding boxes: about the share of
        such slices that show the fracture.
    checkpoint_steps : int
        Steps between checkpoints; an interrupted round resumes from the last one.
    """

    slices_per_round: Slices = 15_000
    rounds: Annotated[int, limits("rounds", ge=1)] | None = None
    order: Order = "shuffled"
    epochs: Annotated[float, limits("epochs", gt=0)] = 3.0
    batch_size: Slices = 32
    accumulation: Annotated[int, limits("batches", ge=1)] = 1
    learning_rate: Rate = 3e-4
    weight_decay: Annotated[float, limits("rate", ge=0)] = 0.05
    warmup: PartialShare = 0.1
    fractured_share: PartialShare = 0.3
    box_weight: Annotated[float, limits("factor", ge=0)] = 1.0
    weak_target: Annotated[float, limits("probability", ge=0, le=1)] = 0.35
    checkpoint_steps: Annotated[int, limits("steps", ge=1)] = 500

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class BoostConfig:
    """What keeps a round from making the model worse; without it, training simply continues.

    Parameters
    ----------
    replay : float
        Share of a round's inputs that come from patients of earlier rounds; 0 replays none.
    ema_window : float
        Share of a round's steps over which the exponential moving average (EMA) of the weights
        looks back; 0 keeps no EMA.
    rate_fall : float
        Peak learning rate of a round, as a multiple of that of the round before.
    layer_decay : float
        Learning rate of a layer, as a multiple of that of the layer above it; from the first round
        that continues from trained weights.
    step_lengths : tuple of float
        Candidates between the incumbent (0) and the newly trained weights (1), by the share of the
        way.
    guarded : bool
        Whether a round is accepted only where the loss of the guard patients falls; otherwise every
        round is accepted, and its newly trained weights are the only candidate.
    caution : float
        Standard errors that the gain of a round must exceed. 1 asks for evidence; 0 accepts any
        lower loss, and lets small gains add up that few guard patients cannot prove.
    """

    replay: PartialShare = 0.4
    ema_window: Share = 0.2
    rate_fall: Factor = 0.8
    layer_decay: Factor = 0.8
    step_lengths: tuple[Factor, ...] = (0.25, 0.5, 0.75, 1.0)
    guarded: bool = True
    caution: Annotated[float, limits("errors", ge=0)] = 1.0

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Parameters
    ----------
    recipe : str
        Name of the recipe: how rounds are planned, trained and validated. See
        `training.rounds.recipes`.
    seed : int
        Seed of the splits, the rounds, the weights and everything sampled.
    split : SplitConfig
        How patients are split.
    inputs : InputConfig
        How slices become inputs.
    model : ModelConfig
        Architecture of a new model.
    augment : AugmentConfig
        How training inputs vary.
    train : TrainConfig
        How a round is trained.
    boost : BoostConfig
        What keeps a round from making the model worse; the recipes `boost` and `sequence` use it.
    sequence : SequenceConfig
        How a vertebra is read as a sequence of slices; the recipe `sequence` uses it.
    """

    recipe: str = "boost"
    seed: Seed = 0
    split: SplitConfig = field(default_factory=SplitConfig)
    inputs: InputConfig = field(default_factory=InputConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    boost: BoostConfig = field(default_factory=BoostConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)

    def __post_init__(self) -> None:
        check(self)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> "RunConfig":
        """Read what `to_json` wrote, in this version or in an earlier one.

        Raises
        ------
        UsageError
            ``config-invalid``, naming the field.
        """
        return read_settings(cls(), document, old_names=OLD_NAMES, complete=True)

    def override(self, values: Mapping[str, Any]) -> "RunConfig":
        """A copy with some fields of some parts changed, e.g. ``{"train": {"epochs": 2}}``."""
        return read_settings(self, values)


OLD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "train.broken_share": "train.fractured_share",
        "boost.average": "boost.ema_window",
        "sequence.drawn": "sequence.sampled",
    }
)
"""Names that fields of `RunConfig` had in earlier versions, and their names of today."""


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
            sequence=SequenceConfig(sampled=1, width=32, patient_width=16, dropout=0.4),
        ),
    }
)


def inputs_from_json(document: Any) -> InputConfig:
    """Read an `InputConfig` as it stands beside a model.

    Raises
    ------
    UsageError
        ``config-invalid``, naming the field.
    """
    return read_settings(InputConfig(), document, complete=True)


def _invalid(detail: str) -> UsageError:
    return UsageError("config-invalid", detail)
