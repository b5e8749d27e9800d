"""One round of any kind of model through Hugging Face `Trainer`, kept small.

Two traps of transformers 5.9 to 5.24 are avoided here. `Trainer`'s own checkpoints are pickles, and
reload a ViT without its encoder: so it never saves (`training.models.slice_model` and
`training.optimization.checkpoints` do). And it takes the loss of every model whose forward has
``**kwargs`` for a sum over the whole accumulated batch: so each model says here that its loss is a
mean.
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
"""Of the model as `Trainer` wraps it, one batch on its device, and a generator on the CPU for all
that is drawn; a mean over the batch."""
STATISTICS_BATCHES = 16
"""Steps whose inputs set the statistics of batch normalisations anew."""
_LOGS_A_ROUND = 50
_LAYER = re.compile(r"(?:^|\.)(?:layers?|stages|blocks)\.(\d+)\.")


@dataclass(frozen=True)
class RoundWork:
    """What is to be trained in one round.

    Parameters
    ----------
    number : int
        Of the round, from 1.
    steps : int
        Of the optimizer.
    rate : float
        Peak of the learning rate.
    layer_decay, ema : float
        See `training.config.BoostConfig`.
    seed : int
        Of the order, the augmentation and all other draws.
    log : callable
        Gets step, steps, loss and learning_rate, about fifty times.
    checkpoint : Path or None
        Where the round keeps itself while it is trained; None keeps nothing.
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
    """What came out of a round, beside the model's own weights.

    Parameters
    ----------
    loss : float
        The mean training loss.
    ema : mapping of str to Tensor, or None
        The moving average of the parameters, by name, where one was asked for.
    """

    loss: float
    ema: Mapping[str, Tensor] | None


class Examples(Dataset[Any]):
    """Examples that are gathered a whole batch at once, for `fit` and any ``DataLoader``.

    Parameters
    ----------
    count : int
        How many there are.
    gather : callable
        Takes numbers of examples, int64, and returns their batch as a dict of tensors.
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
    """Train a model, in place; where a checkpoint of this round is found, go on from it.

    Parameters
    ----------
    model : PreTrainedModel
    examples : Dataset
        Map-style; its ``__getitems__`` gathers a whole batch as a dict of tensors, as `Examples`
        does.
    order : ndarray, shape (steps, batch_size * accumulation), int64
        The examples of each step, the same on all ranks.
    loss : callable
    config : TrainConfig
    work : RoundWork

    Raises
    ------
    UsageError
        ``config-invalid`` where the ranks cannot share a step evenly.
    RunError
        ``training-diverged`` where the loss is no number; ``run-unwritable`` where the checkpoint
        cannot be kept.
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
        # Several GPUs are for torchrun; Trainer would take them all in one process.
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
    """Yield the inputs of a round's first steps; the random numbers follow the step alone.

    Parameters
    ----------
    examples, order, work
        As for `fit`.
    see : callable
        Makes the model's input of a batch on the device and a generator on the CPU.
    """
    for number, items in enumerate(order[:STATISTICS_BATCHES]):
        generator = torch.Generator().manual_seed(batch_seed(work.seed, number))
        yield see(to_device(examples.__getitems__(items.tolist())), generator)


def _divide(step: int, most: int) -> int:
    """In how many parts a rank takes its share of a step, of which at most so many fit."""
    if step % ranks():
        raise UsageError(
            "config-invalid",
            f"{ranks()} ranks cannot share the {step} inputs of a step (batch size x accumulation)",
        )
    share = step // ranks()
    return next(n for n in range(1, share + 1) if share % n == 0 and share // n <= most)


# ---- optimizer -----------------------------------------------------------------------------------


def parameter_groups(
    model: PreTrainedModel, config: TrainConfig, work: RoundWork
) -> list[dict[str, Any]]:
    """Group the parameters by layer: the deeper a layer lies below the head, the lower its rate.

    Layer-wise decay is that of Clark et al., ELECTRA (ICLR 2020). Biases, norms and other vectors
    have no weight decay.
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
    """0 for embeddings, then the numbered layers from 1, and above them what is in none."""
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
    """`Trainer` with a given order and a given loss; every draw follows the batch's number."""

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
        """The loss of one batch, with draws that are the same whatever ran before."""
        seed = batch_seed(self.args.seed, self._batch)
        self._batch += ranks()
        torch.manual_seed(seed)  # dropout's
        loss = self._loss(model, inputs, torch.Generator().manual_seed(seed))
        self.losses += float(loss.detach()) / self.args.gradient_accumulation_steps
        return loss


class _Ema(TrainerCallback):
    """Updates the EMA of the weights, where there is one."""

    def __init__(self, state: TrainingState) -> None:
        self._state = state

    def on_step_end(self, *args: Any, **_: Any) -> None:
        if self._state.ema is not None:
            self._state.ema.update_parameters(self._state.model)


class _RoundLog(TrainerCallback):
    """Hand every log line on, and stop at a loss that is no number."""

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
    """Writes the checkpoint every so many steps."""

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
        """Sum over the steps that are done, the mean of all ranks."""
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
    """Take up the round where its checkpoint left it; says how far that is."""
    found = read_checkpoint(work.checkpoint) if work.checkpoint else None
    if found is None or (found[0].number, found[0].steps) != (work.number, work.steps):
        return Progress(work.number, work.steps, 0, 0.0)
    progress, tensors = found
    state.restore(tensors, progress.step)
    return progress
