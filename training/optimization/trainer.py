"""One round of training through Hugging Face `Trainer`, for any kind of model.

Two defects of transformers 5.9 to 5.24 are avoided. `Trainer`'s own checkpoints are pickles and
reload a ViT without its encoder, so it never saves; `training.models.slice_model` and
`training.optimization.checkpoints` do. `Trainer` also treats the loss of any model whose forward
takes ``**kwargs`` as a sum over the accumulated batch, so models are marked as returning a mean.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import AdamW
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from storage_schemas.errors import RunError, UsageError
from training.config import TrainConfig
from training.devices import device, to_device
from training.optimization.averaging import start_ema
from training.optimization.checkpoints import (
    Progress,
    TrainingState,
    batch_seed,
    read_checkpoint,
    write_checkpoint,
)
from training.optimization.schedule import warmup_cosine
from training.ranks import gather_rows, is_first, rank, ranks

Log = Callable[[Mapping[str, Any]], None]
Loss = Callable[[Any, dict[str, Tensor], torch.Generator], Tensor]
"""Function of the model as `Trainer` wraps it, a batch on its device, and a CPU generator for all
random numbers; returns the mean loss over the batch."""
STATISTICS_BATCHES = 16
"""Number of steps whose inputs are used to recompute batch-normalisation statistics."""
_LOGS_A_ROUND = 50
_LAYER = re.compile(r"(?:^|\.)(?:layers?|stages|blocks)\.(\d+)\.")


@dataclass(frozen=True)
class RoundWork:
    """The work of one round.

    Parameters
    ----------
    number : int
        Number of the round, from 1.
    steps : int
        Number of optimizer steps.
    rate : float
        Peak learning rate of the round.
    layer_decay : float
        Factor of the learning rate from each layer to the one below.
    ema : float
        Averaging window of the EMA as a fraction of the round's steps; 0 disables it.
    seed : int
        Seed of the order, the augmentation and the dropout.
    log : callable
        Called about fifty times with step, steps, loss and learning_rate.
    checkpoint : Path or None
        Checkpoint file of the round; None saves none.
    """

    number: int
    steps: int
    rate: float
    layer_decay: float
    ema: float
    seed: int
    log: Log
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Trained:
    """The result of a round, apart from the model's weights.

    Parameters
    ----------
    loss : float
        Mean training loss.
    ema : mapping of str to Tensor, or None
        EMA of the parameters by name, if requested.
    """

    loss: float
    ema: Mapping[str, Tensor] | None


class Examples(Dataset[Any]):
    """Map-style dataset that gathers whole batches, for `fit` and any ``DataLoader``.

    Parameters
    ----------
    count : int
        Number of examples.
    gather : callable
        Maps indices of examples, int64, to their batch, a dict of tensors.
    """

    def __init__(
        self, count: int, gather: Callable[[NDArray[np.int64]], dict[str, Tensor]]
    ) -> None:
        self._count = count
        self._gather = gather

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[int]) -> dict[str, Tensor]:
        return self._gather(np.asarray(items))


def fit(
    model: PreTrainedModel,
    examples: Dataset[Any],
    order: NDArray[np.int64],
    loss: Loss,
    *,
    config: TrainConfig,
    work: RoundWork,
) -> Trained:
    """Train a model in place, resuming from the round's checkpoint if there is one.

    Parameters
    ----------
    model : PreTrainedModel
        Model to train.
    examples : Dataset
        Map-style dataset whose ``__getitems__`` gathers a batch as a dict of tensors, see
        `Examples`.
    order : ndarray, shape (steps, batch_size * accumulation), int64
        Indices of the examples of each step, the same on all ranks.
    loss : callable
        Loss of a batch, see `Loss`.
    config : TrainConfig
        Batch size, weight decay, warm-up and checkpoint interval.
    work : RoundWork
        Steps, learning rate and seed of the round.

    Raises
    ------
    UsageError
        ``config-invalid`` if a step cannot be divided among the ranks.
    RunError
        ``training-diverged`` if the loss is not finite; ``run-unwritable`` if the checkpoint cannot
        be written.
    """
    parts = _divide(order.shape[1], config.batch_size)
    model.accepts_loss_kwargs = False
    model.to(device())
    optimizer = AdamW(parameter_groups(model, config, work), fused=True)
    keep = 1 - 1 / max(1.0, work.ema * work.steps)
    ema = start_ema(model, keep) if work.ema else None
    state = TrainingState(model, optimizer, ema)
    done = _restore(state, work)
    rise = math.ceil(config.warmup * work.steps)
    with TemporaryDirectory(prefix="cspine-trainer-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=work.steps - done.step,
            per_device_train_batch_size=order.shape[1] // (ranks() * parts),
            gradient_accumulation_steps=parts,
            bf16=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            ddp_find_unused_parameters=False,
            seed=work.seed,
            logging_steps=max(1, work.steps // _LOGS_A_ROUND),
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        # Several GPUs are used through torchrun; Trainer would use all of them in one process.
        arguments._n_gpu = min(1, arguments.n_gpu)
        trainer = _RoundTrainer(
            model=model,
            args=arguments,
            train_dataset=examples,
            data_collator=lambda batch: batch,
            optimizers=(optimizer, warmup_cosine(optimizer, rise, work.steps, done.step)),
            callbacks=[_Ema(state), _RoundLog(work.log, done.step, work.steps)],
            order=order[done.step :],
            loss=loss,
            first_batch=done.step * parts * ranks(),
        )
        writer = _CheckpointWriter(state, config, work, done, trainer)
        trainer.add_callback(writer)
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.train()
    mean = writer.loss() / work.steps
    if not math.isfinite(mean):
        raise RunError("training-diverged", f"the mean loss is {mean}")
    if ema is None:
        return Trained(mean, None)
    weights = {name: weight.detach() for name, weight in ema.module.named_parameters()}
    return Trained(mean, weights)


def replay(
    examples: Examples,
    order: NDArray[np.int64],
    see: Callable[[dict[str, Tensor], torch.Generator], Tensor],
    work: RoundWork,
) -> Iterator[Tensor]:
    """Yield the inputs of the first steps of a round, with reproducible augmentation.

    Parameters
    ----------
    examples : Examples
        Dataset of the round.
    order : ndarray, shape (steps, batch), int64
        Indices of the examples of each step.
    see : callable
        Makes the model input from a batch on the device and a CPU generator.
    work : RoundWork
        Seed of the round.
    """
    for number, items in enumerate(order[:STATISTICS_BATCHES]):
        generator = torch.Generator().manual_seed(batch_seed(work.seed, number))
        yield see(to_device(examples.__getitems__(items.tolist())), generator)


def _divide(step: int, most: int) -> int:
    """Return the number of batches in a rank's share of a step, each of at most `most` inputs."""
    if step % ranks():
        raise UsageError(
            "config-invalid",
            f"{ranks()} ranks cannot share {step} inputs per step (batch size x accumulation)",
        )
    share = step // ranks()
    return next(n for n in range(1, share + 1) if share % n == 0 and share // n <= most)


# ---- optimizer -----------------------------------------------------------------------------------


def parameter_groups(
    model: PreTrainedModel, config: TrainConfig, work: RoundWork
) -> list[dict[str, Any]]:
    """Group the parameters by layer, with layer-wise learning-rate decay.

    The decay follows Clark et al., ELECTRA (ICLR 2020). Biases, norms and other vectors have no
    weight decay.
    """
    levels = _levels([name for name, _ in model.named_parameters()])
    top = max(levels.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        level, matrix = levels[name], parameter.ndim > 1
        start: dict[str, Any] = {
            "params": [],
            "lr": work.rate * work.layer_decay ** (top - level),
            "weight_decay": config.weight_decay if matrix else 0.0,
        }
        groups.setdefault((level, matrix), start)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _levels(names: list[str]) -> dict[str, int]:
    """Layer index by parameter name: 0 for embeddings, numbered layers from 1, the rest on top."""
    found = {name: int(match[1]) for name in names if (match := _LAYER.search(name))}
    top = max(found.values(), default=-1) + 2
    return {
        name: found[name] + 1 if name in found else 0 if "embed" in name else top for name in names
    }


# ---- what happens along the steps ----------------------------------------------------------------


class _Order(Sampler[int]):
    def __init__(self, order: NDArray[np.int64]) -> None:
        self._order = order.reshape(-1).tolist()

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)


class _RoundTrainer(Trainer):
    """`Trainer` with a given order and loss, and random numbers seeded by the batch number."""

    def __init__(
        self, *, order: NDArray[np.int64], loss: Loss, first_batch: int, **options: Any
    ) -> None:
        super().__init__(**options)
        self._order = _Order(order)
        self._loss = loss
        self._batch = first_batch + rank()
        self.losses = 0.0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self._order

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of a batch, with a generator seeded by the batch number."""
        seed = batch_seed(self.args.seed, self._batch)
        self._batch += ranks()
        torch.manual_seed(seed)  # for dropout
        loss = self._loss(model, inputs, torch.Generator().manual_seed(seed))
        self.losses += float(loss.detach()) / self.args.gradient_accumulation_steps
        return loss


class _Ema(TrainerCallback):
    """Updates the EMA after each step."""

    def __init__(self, state: TrainingState) -> None:
        self._state = state

    def on_step_end(self, *args: Any, **_: Any) -> None:
        if self._state.ema is not None:
            self._state.ema.update_parameters(self._state.model)


class _RoundLog(TrainerCallback):
    """Passes log entries on, and stops if the loss is not finite."""

    def __init__(self, log: Log, done: int, steps: int) -> None:
        self._log = log
        self._done = done
        self._steps = steps

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        step = self._done + state.global_step
        if not math.isfinite(float(logs["loss"])):
            raise RunError("training-diverged", f"the loss is {logs['loss']} at step {step}")
        self._log(
            {
                "step": step,
                "steps": self._steps,
                "loss": float(logs["loss"]),
                "learning_rate": float(logs["learning_rate"]),
            }
        )


class _CheckpointWriter(TrainerCallback):
    """Writes the checkpoint every ``checkpoint_steps`` steps."""

    def __init__(
        self,
        state: TrainingState,
        config: TrainConfig,
        work: RoundWork,
        done: Progress,
        trainer: _RoundTrainer,
    ) -> None:
        self._state = state
        self._every = config.checkpoint_steps
        self._work = work
        self._done = done
        self._trainer = trainer

    def loss(self) -> float:
        """Sum of the losses of the finished steps, averaged over the ranks."""
        mine = np.array([self._trainer.losses / ranks()])
        return self._done.loss + float(gather_rows(mine)[0])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = self._done.step + state.global_step
        if self._work.checkpoint is None or step % self._every or step == self._work.steps:
            return
        progress = Progress(self._work.number, self._work.steps, step, self.loss())
        if is_first():
            write_checkpoint(self._work.checkpoint, progress, self._state.tensors())


def _restore(state: TrainingState, work: RoundWork) -> Progress:
    """Restore the state from the round's checkpoint and return the position in the round."""
    found = read_checkpoint(work.checkpoint) if work.checkpoint else None
    if found is None or (found[0].number, found[0].steps) != (work.number, work.steps):
        return Progress(work.number, work.steps, 0, 0.0)
    progress, tensors = found
    state.restore(tensors, progress.step)
    return progress
