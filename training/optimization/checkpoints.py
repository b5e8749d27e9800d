"""Training state as safetensors files, from which training resumes bit by bit; no pickles.

A checkpoint holds the model, the moments of AdamW and the EMA; its header holds the position in the
training. The random numbers need no state, since every batch derives its generator from the seed
and the batch number. The file of a finished round's last weights holds the model's weights alone.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

from storage_schemas.errors import UsageError
from training.durable import write_file
from training.optimization.averaging import resume_ema

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""State of AdamW for each parameter."""
_SETTINGS = "cspine"
"""Header key of the settings of a training."""


@dataclass(frozen=True)
class Progress:
    """Position in a round.

    Parameters
    ----------
    number : int
        Number of the round.
    steps : int
        Total steps of the round.
    step : int
        Finished steps.
    loss : float
        Sum of the losses of the finished steps.
    """

    number: int
    steps: int
    step: int
    loss: float


@dataclass(frozen=True)
class TrainingState:
    """Everything that an optimizer step changes.

    Parameters
    ----------
    model : Module
        Model with the weights of the last step.
    optimizer : AdamW
        Optimizer of the parameters of `model`.
    ema : AveragedModel or None
        EMA of the weights, from `training.optimization.averaging.start_ema`.
    """

    model: nn.Module
    optimizer: AdamW
    ema: AveragedModel | None

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name, without copying."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state[parameter]
            tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS if state}
        if self.ema is not None:
            parameters = self.ema.module.named_parameters()
            tensors |= {f"average.{name}": parameter.detach() for name, parameter in parameters}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Restore the state from the output of `tensors` after `step` steps.

        Raises
        ------
        KeyError, RuntimeError
            If the tensors do not fit the model.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        self.model.load_state_dict(parts["model"], strict=True)
        fused = bool(self.optimizer.defaults.get("fused"))
        for name, parameter in self.model.named_parameters():
            if name in parts["exp_avg"]:  # frozen parameters have none
                self.optimizer.state[parameter] = {
                    # Only a fused AdamW keeps its step count on the device.
                    moment: parts[moment][name].to(parameter.device if on_device else "cpu")
                    for moment in _MOMENTS
                    for on_device in (fused or moment != "step",)
                }
        if self.ema is not None:
            for name, parameter in self.ema.module.named_parameters():
                parameter.detach().copy_(parts["average"][name])
            resume_ema(self.ema, step)


def batch_seed(seed: int, number: int) -> int:
    """Seed of the random numbers of one batch, so that a resumed training repeats none.

    Parameters
    ----------
    seed : int
        Seed of the training.
    number : int
        Number of the batch or the step, from 0.
    """
    return seed * 1_000_003 + number


def write_checkpoint(path: Path, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
    """Replace the checkpoint file atomically.

    Raises
    ------
    RunError
        ``run-unwritable`` if the disk is full or fails.
    """
    header = {name: repr(value) for name, value in asdict(progress).items()}
    _write(path, tensors, header)


def read_checkpoint(path: Path) -> tuple[Progress, dict[str, Tensor]] | None:
    """Read a checkpoint; return None if there is none, or none that can be read."""
    if not path.is_file():
        return None
    try:
        header, tensors = _read(path)
        progress = Progress(
            int(header["number"]),
            int(header["steps"]),
            int(header["step"]),
            float(header["loss"]),
        )
        return progress, tensors
    except (SafetensorError, OSError, KeyError, ValueError):
        return None


def write_last_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Save the last weights of a round atomically.

    Raises
    ------
    RunError
        ``run-unwritable`` if the disk is full or fails.
    """
    _write(path, weights, {})


def read_last_weights(path: Path) -> dict[str, Tensor]:
    """Read the last weights of a round.

    Raises
    ------
    UsageError
        ``model-invalid`` if the file is missing or damaged.
    """
    try:
        return _read(path)[1]
    except (SafetensorError, OSError) as error:
        reason = f"the next round starts from these weights, which cannot be read: {error}"
        raise UsageError("model-invalid", reason, key=str(path)) from None


def write_training(
    path: Path, state: TrainingState, step: int, settings: Mapping[str, Any]
) -> None:
    """Save the state of a training outside a RUN atomically.

    Parameters
    ----------
    path : Path
        File to write or replace.
    state : TrainingState
        State of the training.
    step : int
        Finished steps.
    settings : mapping
        JSON values that must be passed to `resume_training` again.

    Raises
    ------
    RunError
        ``run-unwritable`` if the disk is full or fails.
    """
    _write(path, state.tensors(), {_SETTINGS: json.dumps({**settings, "step": step})})


def resume_training(path: Path, state: TrainingState, settings: Mapping[str, Any]) -> int:
    """Restore a state saved by `write_training`, and return the number of finished steps.

    If there is no file, the state is unchanged and 0 is returned.

    Raises
    ------
    UsageError
        ``config-invalid`` if the settings differ or the file is damaged.
    """
    if not path.is_file():
        return 0
    try:
        header, tensors = _read(path)
        document = json.loads(header[_SETTINGS])
        step = int(document.pop("step"))
        if document != settings:
            reason = (
                "it holds an unfinished training with other settings or studies: remove the file"
            )
            raise UsageError("config-invalid", reason, key=str(path))
        state.restore(tensors, step)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError,
            RuntimeError) as error:  # fmt: skip
        reason = f"cannot read the unfinished training ({error}): remove the file"
        raise UsageError("config-invalid", reason, key=str(path)) from None
    return step


def _write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    with write_file(path) as partial:
        save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, partial, header)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, "pt") as stream:
        # Views of the file may be unaligned, which changes the order of sums.
        tensors = {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118
        return stream.metadata() or {}, tensors
