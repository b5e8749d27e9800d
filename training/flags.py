"""Settings of training on a command line and in files: flags, and names of earlier versions."""

from presentation.setting_flags import SettingFlags, flags_of
from training.config import OLD_NAMES, RunConfig
from training.localizer.config import LOCALIZER_OLD_NAMES, LocalizerConfig
from training.rounds.recipes import RECIPES

RUN_SETTINGS = SettingFlags(
    RunConfig,
    flags=flags_of(
        *("recipe", "seed"),
        *("train.rounds", "train.slices_per_round", "train.order", "train.epochs"),
        *("train.batch_size", "train.accumulation", "train.learning_rate"),
        *("train.fractured_share", "train.weak_target", "train.checkpoint_steps"),
        *("boost.replay", "boost.rate_fall", "boost.layer_decay", "boost.ema_window"),
        *("boost.caution", "inputs.size", "inputs.crop_mm", "inputs.trim_mm"),
        *("inputs.neighbours", "inputs.mask", "sequence.positions", "sequence.sampled"),
        *("sequence.pooling", "sequence.frozen", "sequence.head_epochs"),
        *("model.patch", "model.width", "model.depth", "model.heads"),
        *("split.guard", "split.calibration", "split.test", "split.folds"),
    ),
    old_flags={
        "--broken-share": "train.fractured_share",
        "--average": "boost.ema_window",
        "--drawn": "sequence.sampled",
    },
    old_names=OLD_NAMES,
    choices={"recipe": RECIPES},
)
LOCALIZER_SETTINGS = SettingFlags(
    LocalizerConfig,
    flags=flags_of(
        *("size", "steps", "batch_size", "learning_rate", "folds", "fold", "margin_mm", "seed")
    ),
    old_names=LOCALIZER_OLD_NAMES,
)
