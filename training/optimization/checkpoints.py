"""What training goes on from to the very same weights: safetensors files, and never a pickle.

A checkpoint in the middle of a training holds the model, the moments of AdamW, the EMA,
and in its header where the training is. Draws need no state: each batch makes its own from the seed
and its number. The last iterate of a finished round holds the model's weights alone.
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
"""What AdamW keeps of each parameter."""
_SETTINGS = "cspine"
"""The key of the header that holds the settings of a training."""


@dataclass(frozen=True)
class Progress:
    """Where a round is.

    Parameters
    ----------
    number, steps : int
        The round, and all its steps.
    step : int
        Those that are done.
    loss : float
        Sum of their losses.
    """

    number: int
    steps: int
    step: int
    loss: float


@dataclass(frozen=True)
class TrainingState:
    """Everything that a step of a training changes.

    Parameters
    ----------
    model : Module
        The weights as the last step left them.
    optimizer : AdamW
        Of the parameters of `model`.
    ema : AveragedModel or None
        The EMA of the weights, from `training.optimization.averaging.start_ema`.
    """

    model: nn.Module
    optimizer: AdamW
    ema: AveragedModel | None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state, by name; they are not copied."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state[parameter]
            tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS if state}
        if self.ema is not None:
            parameters = self.ema.module.named_parameters()
            tensors |= {f"average.{name}": parameter.detach() for name, parameter in parameters}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Set the state to what `tensors` gave after so many steps.

        Raises
        ------
        KeyError, RuntimeError
            Where the tensors are not those of such a model.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        self.model.load_state_dict(parts["model"], strict=True)
        fused = bool(self.optimizer.defaults.get("fused"))
        for name, parameter in self.model.named_parameters():
            if name in parts["exp_avg"]:  # what is frozen has none
                self.optimizer.state[parameter] = {
                    # Only a fused AdamW counts its steps on the device.
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
    """Replace the checkpoint, whole or not at all.

    Raises
    ------
    RunError
        ``run-unwritable`` where the disk is full or fails.
    """
    header = {name: repr(value) for name, value in asdict(progress).items()}
    _write(path, tensors, header)


def read_checkpoint(path: Path) -> tuple[Progress, dict[str, Tensor]] | None:
    """Read the checkpoint; None where there is none, or none that can be read."""
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
    """Keep the weights that a round trained, whole or not at all.

    Raises
    ------
    RunError
        ``run-unwritable`` where the disk is full or fails.
    """
    _write(path, weights, {})


def read_last_weights(path: Path) -> dict[str, Tensor]:
    """Read them back, to the bit.

    Raises
    ------
    UsageError
        ``model-invalid`` where they are missing or damaged.
    """
    try:
        return _read(path)[1]
    except (SafetensorError, OSError) as error:
        reason = f"the next round goes on from these weights, and they cannot be read: {error}"
        raise UsageError("model-invalid", reason, key=str(path)) from None


def write_training(
    path: Path, state: TrainingState, step: int, settings: Mapping[str, Any]
) -> None:
    """Keep a training that is no round of a run, whole or not at all.

    Parameters
    ----------
    path : Path
        The file; what is there is replaced.
    state : TrainingState
    step : int
        Steps that are done.
    settings : mapping
        JSON values that `resume_training` must be given again.

    Raises
    ------
    RunError
        ``run-unwritable`` where the disk is full or fails.
    """
    _write(path, state.tensors(), {_SETTINGS: json.dumps({**settings, "step": step})})


def resume_training(path: Path, state: TrainingState, settings: Mapping[str, Any]) -> int:
    """Set a new training to the state that `write_training` kept; returns the steps done.

    Where there is no file, nothing is set and the steps are 0.

    Raises
    ------
    UsageError
        ``config-invalid`` where it had other settings, or is damaged.
    """
    if not path.is_file():
        return 0
    try:
        header, tensors = _read(path)
        document = json.loads(header[_SETTINGS])
        step = int(document.pop("step"))
        if document != settings:
            reason = "a training of other settings or studies stopped here: remove the file"
            raise UsageError("config-invalid", reason, key=str(path))
        state.restore(tensors, step)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError,
            RuntimeError) as error:  # fmt: skip
        reason = f"a stopped training that cannot be read ({error}): remove the file"
        raise UsageError("config-invalid", reason, key=str(path)) from None
    return step


def _write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    with write_file(path) as partial:
        save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, partial, header)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, "pt") as stream:
        # Views of the file need not be aligned, and sums then come in another order.
        tensors = {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118
        return stream.metadata() or {}, tensors
