"""Slice models as folders: building, starting from a checkpoint, saving, and strict loading.

A folder holds ``config.json``, ``model.safetensors``, ``preprocessor_config.json`` and a card, and
loads offline with ``AutoModelForImageClassification`` and ``pipeline("image-classification")``. The
preprocessor configuration holds the `InputConfig` under ``cspine_inputs``, so that predictions use
the inputs of the training. There is no network access, and pickles are not read.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedModel,
    ViTImageProcessorPil,
)

from storage_schemas.errors import UsageError
from training.config import InputConfig, ModelConfig, inputs_from_json
from training.durable import write_folder
from training.models.families import build_encoder

LABEL = "fractured"
PRIOR = 0.05
"""Initial fracture probability of every slice in a new model."""
_INPUTS_KEY = "cspine_inputs"
UNREADABLE = (
    OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError, UsageError,
)  # fmt: skip
"""Exceptions that transformers raises for folders that are not models."""
_ONE_LOGIT: Mapping[str, Any] = {
    "num_labels": 1,
    "id2label": {0: LABEL},
    "label2id": {LABEL: 0},
    # With one label, transformers would default to regression.
    "problem_type": "multi_label_classification",
}


def build_model(config: ModelConfig, inputs: InputConfig, seed: int) -> PreTrainedModel:
    """Build a slice model with random weights.

    The bias of the classifier is set to `PRIOR`, so that the majority of intact slices does not
    dominate the first steps (Lin et al., ICCV 2017, doi:10.1109/ICCV.2017.324, section 4.1).

    Parameters
    ----------
    config : ModelConfig
        Family and size of the model.
    inputs : InputConfig
        Size and channels of the input.
    seed : int
        Seed of the weights.

    Raises
    ------
    UsageError
        ``config-invalid`` if the patches do not fill the input.
    """
    _check_channels(inputs)
    if inputs.size % config.patch:
        raise UsageError(
            "config-invalid", f"patches of {config.patch} px do not fill {inputs.size} px"
        )
    torch.manual_seed(seed)
    model = build_encoder(config, inputs, _ONE_LOGIT)
    *_, bias = model.classifier.parameters()
    torch.nn.init.constant_(bias, math.log(PRIOR / (1 - PRIOR)))
    return _declare_mean_loss(model)


def start_model(
    folder: Path, inputs: InputConfig, seed: int
) -> tuple[PreTrainedModel, InputConfig]:
    """Start from a local image-classification checkpoint; a head of another size is replaced.

    Parameters
    ----------
    folder : Path
        Folder of the checkpoint.
    inputs : InputConfig
        Input settings of the run.
    seed : int
        Seed of new weights.

    Returns
    -------
    model : PreTrainedModel
        Model with one logit.
    inputs : InputConfig
        Input settings with the checkpoint's input size and normalisation.

    Raises
    ------
    UsageError
        ``model-invalid`` if the folder is not such a checkpoint, has only pickled weights, or lacks
        weights of the encoder.
    """
    _check_channels(inputs)
    torch.manual_seed(seed)
    model = load_checkpoint(
        folder,
        AutoModelForImageClassification,
        "classifier.",
        lambda config: {"ignore_mismatched_sizes": True},
        **_ONE_LOGIT,
    )
    size = getattr(model.config, "image_size", inputs.size)
    if not isinstance(size, int):
        raise model_invalid(folder, f"its input size is {size}, not a square")
    return _declare_mean_loss(model), replace(inputs, size=size, **read_normalisation(folder))


def load_checkpoint(
    folder: Path,
    kind: Any,
    head: str,
    options: Callable[[Any], Mapping[str, Any]],
    **changes: Any,
) -> PreTrainedModel:
    """Load the encoder of a local transformers checkpoint, and its head if there is one.

    Parameters
    ----------
    folder : Path
        Folder with ``config.json`` and safetensors files.
    kind : type
        Class of transformers whose ``from_pretrained`` builds the model.
    head : str
        Name prefix of weights that may be missing.
    options : callable
        Maps the checkpoint's configuration to further options of ``from_pretrained``.
    **changes
        Values to replace in the checkpoint's configuration.

    Raises
    ------
    UsageError
        ``model-invalid`` if the folder is not such a checkpoint, has only pickled weights, or lacks
        weights of the encoder.
    """
    check_folder(folder)
    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **changes
        )
        model, missing = _from_pretrained(folder, kind, config=config, **options(config))
    except UNREADABLE as error:
        raise model_invalid(folder, _detail_of(error)) from None
    if missing := [name for name in missing if not name.startswith(head)]:
        detail = f"{len(missing)} weights of the encoder are missing, first {missing[0]}"
        raise model_invalid(folder, detail)
    return model


def read_model_type(folder: Path) -> str:
    """Read the ``model_type`` of a folder's config.json; empty if it cannot be read."""
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def is_cspine_model(folder: Path) -> bool:
    """Return whether `save_model` wrote the folder, so that its head is trained on fractures."""
    path = folder / "preprocessor_config.json"
    try:
        return _INPUTS_KEY in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        return False


def load_model(
    folder: Path, kind: Any = AutoModelForImageClassification
) -> tuple[PreTrainedModel, InputConfig]:
    """Load a folder written by `save_model`, with strict checks of all weights.

    Parameters
    ----------
    folder : Path
        Folder of the model.
    kind : type
        Class whose ``from_pretrained`` builds the model; slice models by default.

    Raises
    ------
    UsageError
        ``model-invalid`` if a weight is missing, unexpected or of another shape, or if the input
        settings do not fit the model.
    """
    check_folder(folder)
    try:
        document = json.loads((folder / "preprocessor_config.json").read_text())
        inputs = inputs_from_json(document[_INPUTS_KEY])
        model, wrong = _from_pretrained(folder, kind)
    except UNREADABLE as error:
        raise model_invalid(folder, _detail_of(error)) from None
    if wrong:
        raise model_invalid(folder, f"{len(wrong)} weights do not fit, first {wrong[0]}")
    if (size := getattr(model.config, "image_size", inputs.size)) != inputs.size:
        raise model_invalid(folder, f"the model takes {size} px, its inputs have {inputs.size}")
    channels = getattr(model.config, "encoder", model.config).num_channels
    if channels != inputs.channels:
        detail = f"the model takes {channels} channels, its inputs have {inputs.channels}"
        raise model_invalid(folder, detail)
    return _declare_mean_loss(model), inputs


def save_model(
    model: PreTrainedModel,
    inputs: InputConfig,
    folder: Path,
    *,
    card: str,
    documents: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a model folder atomically.

    Parameters
    ----------
    model : PreTrainedModel
        Model to save.
    inputs : InputConfig
        Input settings of the model.
    folder : Path
        Folder to write or replace.
    card : str
        Model card in Markdown.
    documents : mapping
        Further JSON documents by file name.

    Raises
    ------
    RunError
        ``run-unwritable`` if the disk is full or fails; the previous folder is kept.
    """
    documents = {"preprocessor_config.json": _preprocessor(inputs), **documents}
    with write_folder(folder) as partial:
        model.save_pretrained(partial)
        for name, document in documents.items():
            (partial / name).write_text(json.dumps(document, indent=2) + "\n")
        (partial / "README.md").write_text(card)


def _preprocessor(inputs: InputConfig) -> dict[str, Any]:
    """Configuration of an RGB image processor for windowed slices, including our `InputConfig`."""
    processor = ViTImageProcessorPil(
        size={"height": inputs.size, "width": inputs.size},
        image_mean=list(inputs.mean),
        image_std=list(inputs.std),
    )
    document = json.loads(processor.to_json_string())
    return document | {"image_processor_type": "ViTImageProcessor", _INPUTS_KEY: asdict(inputs)}


def _from_pretrained(folder: Path, kind: Any, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """Load a model; also return the names of weights that were not loaded as they are."""
    model, info = kind.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    wrong = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    if not options:
        wrong |= set(info["unexpected_keys"])
    return copy_from_file(model), sorted(wrong)


def copy_from_file(model: PreTrainedModel) -> PreTrainedModel:
    """Copy every weight out of the memory-mapped file."""
    for tensor in (*model.parameters(), *model.buffers()):
        # Views of the file may be unaligned, which changes the order of sums.
        tensor.data = tensor.data.clone()
    return model


def _declare_mean_loss(model: PreTrainedModel) -> PreTrainedModel:
    """Mark the loss of a model as a mean over the batch.

    Because the forward of ViT takes ``**kwargs``, `Trainer` (transformers 5.9 to 5.23) assumes that
    the loss is divided by the whole accumulated batch. The multi-label loss is not, and gradients
    would grow with the number of accumulation steps.
    """
    model.accepts_loss_kwargs = False
    return model


def _check_channels(inputs: InputConfig) -> None:
    if inputs.channels != 3:
        raise UsageError(
            "config-invalid", "slice models take three neighbouring slices and no mask"
        )


def check_folder(folder: Path) -> None:
    """Refuse a folder without a configuration, or with pickled weights only."""
    if not (folder / "config.json").is_file():
        raise model_invalid(folder, "no config.json found")
    if not list(folder.glob("*.safetensors")):
        detail = "no safetensors file found, and pickled weights are not read"
        raise model_invalid(folder, detail)


def read_normalisation(folder: Path) -> dict[str, Any]:
    """Read ``mean`` and ``std`` of the checkpoint, if it has them."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text())
        found = {
            field: tuple(float(value) for value in document[key])
            for field, key in (("mean", "image_mean"), ("std", "image_std"))
            if key in document
        }
    except (ValueError, TypeError) as error:
        raise model_invalid(folder, f"preprocessor_config.json: {error}") from None
    if any(len(values) != 3 for values in found.values()):
        raise model_invalid(folder, "the normalisation needs three channels")
    return found


def _detail_of(error: Exception) -> str:
    return error.detail if isinstance(error, UsageError) else str(error)


def model_invalid(folder: Path, detail: str) -> UsageError:
    """Make the error for a folder that is not a valid model."""
    return UsageError("model-invalid", detail, key=str(folder))
