"""One round through Hugging Face `Trainer`, kept small.

Two traps of transformers 5.9 to 5.23 are avoided here: `Trainer`'s own checkpoints reload a ViT
without its encoder, so it never saves (`training.models` does), and its scaling of a multi-label
loss under gradient accumulation is wrong unless the model says so (`training.models` does).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from storage_schemas.errors import RunError
from training.config import AugmentConfig, InputConfig, TrainConfig
from training.inputs import (
    SliceIndex,
    cover_patches,
    draw_pose,
    gather_slices,
    make_pixels,
    normalise,
    vary_intensity,
)
from training.patches import PatchReader, box_loss
from training.shards import RoundShards

Log = Callable[[Mapping[str, Any]], None]
_LOGS_A_ROUND = 50


class SliceDataset(Dataset[Any]):
    """The inputs of a round, map-style; whole batches are gathered at once."""

    def __init__(self, shards: RoundShards, index: SliceIndex) -> None:
        self._shards = shards
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        return self.__getitems__([item])

    def __getitems__(self, items: list[int]) -> dict[str, Tensor]:
        batch = gather_slices(self._shards, self._index.crop[items], self._index.z[items])
        return batch | {"labels": torch.from_numpy(self._index.target[items, None])}


class BrokenShareSampler(Sampler[int]):
    """The order of a whole round: each batch has the same share of broken slices.

    Slices of either kind are drawn without replacement until all were drawn, then again.

    Parameters
    ----------
    target : ndarray, shape (inputs,), float32
        Above 0 is broken.
    broken_share : float
        Of each batch; 0, or inputs of one kind only, draw slices as they come.
    batch_size, batches, seed : int
    """

    def __init__(
        self,
        target: NDArray[np.float32],
        *,
        broken_share: float,
        batch_size: int,
        batches: int,
        seed: int,
    ) -> None:
        broken, whole = np.flatnonzero(target > 0), np.flatnonzero(target == 0)
        generator = np.random.default_rng(seed)
        kinds = [(np.arange(target.size), batch_size)]
        if broken_share and broken.size and whole.size and batch_size > 1:
            count = min(batch_size - 1, max(1, round(broken_share * batch_size)))
            kinds = [(broken, count), (whole, batch_size - count)]
        drawn = [_endless(i, batches * n, generator).reshape(batches, n) for i, n in kinds]
        self._order = generator.permuted(np.concatenate(drawn, axis=1), axis=1).reshape(-1)

    def __len__(self) -> int:
        return self._order.size

    def __iter__(self) -> Iterator[int]:
        return iter(self._order.tolist())


def _endless(
    items: NDArray[np.int64], count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """The first `count` of the items, shuffled again each time that all were drawn."""
    times = -(-count // items.size)
    return np.concatenate([generator.permutation(items) for _ in range(times)])[:count]


class SliceTrainer(Trainer):
    """`Trainer` that makes its pixels on the model's device, from native slices.

    Where boxes are drawn and the model has patches, it is asked about them too; see
    `training.patches`.
    """

    def __init__(
        self,
        *,
        sampler: Sampler[int],
        inputs: InputConfig,
        augment: AugmentConfig,
        box_weight: float,
        patches: PatchReader | None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._sampler = sampler
        self._inputs = inputs
        self._augment = augment
        self._box_weight = box_weight
        self._patches = patches
        self._batches = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self._sampler

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """The model's own loss of pixels made here, and that of the boxes."""
        labels = inputs.pop("labels")
        # By the number of the batch, so that equal seeds draw alike whatever ran before.
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self._batches)
        self._batches += 1
        pose = draw_pose(len(labels), self._augment, generator)
        pixels = vary_intensity(make_pixels(inputs, self._inputs, pose), self._augment, generator)
        ready = {"pixel_values": normalise(pixels, self._inputs), "labels": labels}
        loss = super().compute_loss(model, ready, *args, **kwargs)
        if self._patches is None:
            return loss
        logits = self._patches.logits().float()
        covered = cover_patches(inputs, self._inputs, pose, math.isqrt(logits.shape[1]))
        return loss + self._box_weight * box_loss(logits, covered, labels[:, 0] == 0)


class _RoundLog(TrainerCallback):
    """Hand every log line on, and stop at a loss that is no number."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(float(logs["loss"])):
            raise RunError(
                "training-diverged", f"the loss is {logs['loss']} at {state.global_step}"
            )
        self._log(
            {
                "step": state.global_step,
                "steps": state.max_steps,
                "loss": float(logs["loss"]),
                "learning_rate": float(logs["learning_rate"]),
            }
        )


def train_slices(
    model: PreTrainedModel,
    shards: RoundShards,
    index: SliceIndex,
    *,
    inputs: InputConfig,
    augment: AugmentConfig,
    config: TrainConfig,
    seed: int,
    log: Log,
) -> float:
    """Train a model, in place, on the slices whose target is known.

    Parameters
    ----------
    model : PreTrainedModel
        From `training.models`.
    shards : RoundShards
    index : SliceIndex
    inputs, augment, config
        Settings; see there.
    seed : int
        Of the order and the augmentation.
    log : callable
        Gets step, steps, loss and learning_rate, about fifty times.

    Returns
    -------
    float
        The mean training loss.

    Raises
    ------
    RunError
        ``training-diverged`` where the loss is no number.
    """
    known = np.flatnonzero(~np.isnan(index.target))
    index = SliceIndex(index.crop[known], index.z[known], index.target[known])
    batch = config.batch_size * config.accumulation
    steps = max(1, round(len(index) * config.epochs / batch))
    patches = PatchReader(model) if config.box_weight and PatchReader.reads(model) else None
    with TemporaryDirectory(prefix="cspine-trainer-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.accumulation,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(config.warmup * steps),
            bf16=torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=seed,
            logging_steps=max(1, steps // _LOGS_A_ROUND),
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = SliceTrainer(
            model=model,
            args=arguments,
            train_dataset=SliceDataset(shards, index),
            data_collator=lambda batch: batch,
            callbacks=[_RoundLog(log)],
            sampler=BrokenShareSampler(
                index.target,
                broken_share=config.broken_share,
                batch_size=config.batch_size,
                batches=steps * config.accumulation,
                seed=seed,
            ),
            inputs=inputs,
            augment=augment,
            box_weight=config.box_weight,
            patches=patches,
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        try:
            result = trainer.train()
        finally:
            if patches is not None:
                patches.close()
    if not math.isfinite(result.training_loss):
        raise RunError("training-diverged", f"the mean loss is {result.training_loss}")
    return float(result.training_loss)
