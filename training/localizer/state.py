"""The training of a localizer as it stands, in memory and on the disk, so that it can go on.

One safetensors file holds all that a step changes, with the step and the settings as JSON inside.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from storage_schemas.errors import UsageError
from training.durable import write_file
from training.localizer.config import LocalizerConfig
from training.localizer.unet import LocalizerNetwork, build_network

_MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight."""


@dataclass
class LocalizerTraining:
    """A training as it stands.

    Parameters
    ----------
    network, ema : LocalizerNetwork
        As the last step left it, and the running mean of its weights, which is what counts.
    optimizer : torch.optim.AdamW
    step : int
        Steps done.
    """

    network: LocalizerNetwork
    ema: LocalizerNetwork
    optimizer: torch.optim.AdamW
    step: int = 0

    @classmethod
    def begin(cls, config: LocalizerConfig, device: torch.device) -> "LocalizerTraining":
        """A training of no step yet."""
        network = build_network(config, config.seed).to(device)
        optimizer = torch.optim.AdamW(
            network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        return cls(network, copy.deepcopy(network), optimizer)


class SavedTraining:
    """The state of a training on the disk.

    Parameters
    ----------
    out : Path
        Where the localizer will stand.
    settings : dict
        Of which a saved training must have the very same.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.path = out.with_name(f".{out.name}.training.safetensors")
        self._settings = settings

    def save(self, training: LocalizerTraining) -> None:
        """Write the state, whole or not at all; raises RunError ``run-unwritable``."""
        document = json.dumps(self._settings | {"step": training.step})
        tensors = {name: value.contiguous() for name, value in _tensors(training).items()}
        with write_file(self.path) as partial:
            save_file(tensors, partial, metadata={"cspine": document})

    def load(self, training: LocalizerTraining) -> None:
        """Bring a training to the state that was saved, where one was.

        Raises
        ------
        UsageError
            ``config-invalid`` where it had other settings or studies, or is damaged.
        """
        if not self.path.is_file():
            return
        try:
            with safe_open(self.path, "pt") as file:
                document = json.loads((file.metadata() or {})["cspine"])
                step = int(document.pop("step"))
                if document != self._settings:
                    reason = "a training of other settings or studies stopped here"
                    raise UsageError("config-invalid", f"{reason}: remove it", key=str(self.path))
                for parameter in training.network.parameters():
                    training.optimizer.state[parameter] = {
                        "step": torch.tensor(float(step)),
                        **{name: torch.zeros_like(parameter) for name in _MOMENTS},
                    }
                for name, tensor in _tensors(training).items():
                    tensor.copy_(file.get_tensor(name))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError,
                RuntimeError) as error:  # fmt: skip
            reason = f"a stopped training that cannot be read ({error}): remove the file"
            raise UsageError("config-invalid", reason, key=str(self.path)) from None
        training.step = step

    def remove(self) -> None:
        """Forget it: the training is over."""
        self.path.unlink(missing_ok=True)


def _tensors(training: LocalizerTraining) -> dict[str, Tensor]:
    """Everything that a step changes, by name."""
    tensors = {}
    for name, parameter in training.network.named_parameters():
        tensors[f"network.{name}"] = parameter.detach()
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = training.optimizer.state[parameter][moment]
    for name, parameter in training.ema.named_parameters():
        tensors[f"average.{name}"] = parameter.detach()
    return tensors
