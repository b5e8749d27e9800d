"""Slice models as folders: made, started from a checkpoint, saved, and reloaded strictly.

A folder holds ``config.json``, ``model.safetensors``, ``preprocessor_config.json`` and a card, and
opens with ``AutoModelForImageClassification`` and ``pipeline("image-classification")`` offline. The
preprocessor carries our `InputConfig` under ``cspine_inputs``: what trained is what predicts.
Nothing here asks the network, and nothing reads a pickle.
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
from training.models.families import FAMILIES

LABEL = "fractured"
PRIOR = 0.05
"""How probable a new model holds a fracture in any slice."""
_INPUTS_KEY = "cspine_inputs"
UNREADABLE = (
    OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError, UsageError,
)  # fmt: skip
"""What transformers raises at a folder that is no model."""
_ONE_LOGIT: Mapping[str, Any] = {
    "num_labels": 1,
    "id2label": {0: LABEL},
    "label2id": {LABEL: 0},
    # One label would mean regression to transformers.
    "problem_type": "multi_label_classification",
}


def build_model(config: ModelConfig, inputs: InputConfig, seed: int) -> PreTrainedModel:
    """Make a model with random weights.

    Its first guess of every slice is `PRIOR`, so that the many whole ones do not drown the first
    steps (Lin et al., ICCV 2017, doi:10.1109/ICCV.2017.324, section 4.1).

    Raises
    ------
    UsageError
        ``config-invalid`` where its patches do not fill the input.
    """
    _check_channels(inputs)
    if inputs.size % config.patch:
        raise UsageError(
            "config-invalid", f"patches of {config.patch} px do not fill {inputs.size} px"
        )
    torch.manual_seed(seed)
    build = FAMILIES[config.family].build
    assert build is not None, "each `Family` of the settings can be made"
    model = build(config, inputs, _ONE_LOGIT)
    *_, bias = model.classifier.parameters()
    torch.nn.init.constant_(bias, math.log(PRIOR / (1 - PRIOR)))
    return _declare_mean_loss(model)


def start_model(
    folder: Path, inputs: InputConfig, seed: int
) -> tuple[PreTrainedModel, InputConfig]:
    """Start from any local image-classification checkpoint; its head is replaced where it differs.

    Returns
    -------
    PreTrainedModel
        With one logit.
    InputConfig
        `inputs` with the checkpoint's own input size and normalisation.

    Raises
    ------
    UsageError
        ``model-invalid`` where the folder is no such checkpoint, has only pickled weights, or
        lacks weights of the encoder.
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
        raise model_invalid(folder, f"its input is {size}, not a square")
    return _declare_mean_loss(model), replace(inputs, size=size, **read_normalisation(folder))


def load_checkpoint(
    folder: Path,
    kind: Any,
    head: str,
    options: Callable[[Any], Mapping[str, Any]],
    **changes: Any,
) -> PreTrainedModel:
    """Load the encoder of any local checkpoint of transformers, and its head where it has one.

    Parameters
    ----------
    folder : Path
        Folder with ``config.json`` and safetensors files.
    kind : type
        Class of transformers whose ``from_pretrained`` makes the model.
    head : str
        How the names of weights begin that may be missing.
    options : callable
        Takes the checkpoint's configuration and returns further options of ``from_pretrained``.
    **changes
        Values to replace in the checkpoint's configuration.

    Raises
    ------
    UsageError
        ``model-invalid`` where the folder is no such checkpoint, has only pickled weights, or
        lacks weights of the encoder.
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
        detail = f"{len(missing)} weights of the encoder are not there: {missing[0]}"
        raise model_invalid(folder, detail)
    return model


def read_model_type(folder: Path) -> str:
    """The ``model_type`` of a folder's config.json; empty where there is none to be read."""
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def is_cspine_model(folder: Path) -> bool:
    """Whether `save_model` wrote the folder, so that its head knows of fractures already."""
    path = folder / "preprocessor_config.json"
    try:
        return _INPUTS_KEY in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        return False


def load_model(
    folder: Path, kind: Any = AutoModelForImageClassification
) -> tuple[PreTrainedModel, InputConfig]:
    """Reload a folder written by `save_model`, every weight of it.

    Parameters
    ----------
    folder : Path
    kind : type
        With the ``from_pretrained`` of its models; slice models by default.

    Raises
    ------
    UsageError
        ``model-invalid`` where a weight is missing, spare or of another shape, or where the inputs
        are not those of the model.
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
        raise model_invalid(folder, f"it sees {size} px, its inputs have {inputs.size}")
    seen = getattr(model.config, "encoder", model.config).num_channels
    if seen != inputs.channels:
        raise model_invalid(folder, f"it sees {seen} channels, its inputs have {inputs.channels}")
    return _declare_mean_loss(model), inputs


def save_model(
    model: PreTrainedModel,
    inputs: InputConfig,
    folder: Path,
    *,
    card: str,
    documents: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a model folder, whole or not at all.

    Parameters
    ----------
    model : PreTrainedModel
    inputs : InputConfig
    folder : Path
        What stands there is replaced.
    card : str
        The model card, Markdown.
    documents : mapping
        Further JSON documents by file name.

    Raises
    ------
    RunError
        ``run-unwritable`` where the disk is full or fails; what stood there is intact.
    """
    documents = {"preprocessor_config.json": _preprocessor(inputs), **documents}
    with write_folder(folder) as partial:
        model.save_pretrained(partial)
        for name, document in documents.items():
            (partial / name).write_text(json.dumps(document, indent=2) + "\n")
        (partial / "README.md").write_text(card)


def _preprocessor(inputs: InputConfig) -> dict[str, Any]:
    """For others: an RGB picture of the three windowed slices, 0 to 255. For us: the rest."""
    processor = ViTImageProcessorPil(
        size={"height": inputs.size, "width": inputs.size},
        image_mean=list(inputs.mean),
        image_std=list(inputs.std),
    )
    document = json.loads(processor.to_json_string())
    return document | {"image_processor_type": "ViTImageProcessor", _INPUTS_KEY: asdict(inputs)}


def _from_pretrained(folder: Path, kind: Any, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of all weights that did not come from the folder as they stand."""
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
    """Copy every weight out of the file that it was mapped from."""
    for tensor in (*model.parameters(), *model.buffers()):
        # Views of the file need not be aligned, and sums then come in another order.
        tensor.data = tensor.data.clone()
    return model


def _declare_mean_loss(model: PreTrainedModel) -> PreTrainedModel:
    """Tell `Trainer` that this loss is a mean over the batch.

    The forward of ViT takes ``**kwargs``, from which `Trainer` (transformers 5.9 to 5.23) concludes
    that it divides by the whole accumulated batch. The multi-label loss does not, so gradients
    would grow with the number of accumulation steps.
    """
    model.accepts_loss_kwargs = False
    return model


def _check_channels(inputs: InputConfig) -> None:
    if inputs.channels != 3:
        raise UsageError("config-invalid", "a slice model sees three neighbours and no mask")


def check_folder(folder: Path) -> None:
    """Refuse a folder without a configuration, or with pickled weights only."""
    if not (folder / "config.json").is_file():
        raise model_invalid(folder, "there is no config.json")
    if not list(folder.glob("*.safetensors")):
        detail = "there is no safetensors file, and pickled weights are not read"
        raise model_invalid(folder, detail)


def read_normalisation(folder: Path) -> dict[str, Any]:
    """The checkpoint's own ``mean`` and ``std``, where it says so."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text())
        found = {
            ours: tuple(float(value) for value in document[theirs])
            for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
            if theirs in document
        }
    except (ValueError, TypeError) as error:
        raise model_invalid(folder, f"preprocessor_config.json: {error}") from None
    if any(len(values) != 3 for values in found.values()):
        raise model_invalid(folder, "its normalisation is not of three channels")
    return found


def _detail_of(error: Exception) -> str:
    return error.detail if isinstance(error, UsageError) else str(error)


def model_invalid(folder: Path, detail: str) -> UsageError:
    """The error about a folder that is no model, or not a whole one."""
    return UsageError("model-invalid", detail, key=str(folder))
