"""Export of a trained localizer to one ONNX file, with a check of its outputs.

`storage_schemas.localizer_card` specifies the file, which contains the weights.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from storage_schemas.errors import RunError
from storage_schemas.localizer_card import INPUT, METADATA_KEY, OPSET, OUTPUT, LocalizerCard
from training.durable import write_bytes, write_text
from training.localizer.unet import LocalizerGraph, LocalizerNetwork

MAX_DIFFERENCE = 1e-3
"""Largest accepted difference between probabilities of the file and of the network."""


def export_network(
    network: LocalizerNetwork, size: int, examples: NDArray[np.float32]
) -> tuple[onnx.ModelProto, float]:
    """Export a network to ONNX and compare the outputs of both.

    Parameters
    ----------
    network : LocalizerNetwork
        Trained network; it is moved to the CPU.
    size : int
        Side of the cube in voxels.
    examples : ndarray, shape (n, 1, S, S, S), float32, HU
        Overviews to compare the outputs on.

    Returns
    -------
    model : onnx.ModelProto
        Exported model.
    difference : float
        Largest absolute difference between two probabilities.

    Raises
    ------
    RunError
        ``export-differs`` if the difference exceeds `MAX_DIFFERENCE`.
    """
    graph = LocalizerGraph(network).cpu().eval()
    # A batch of two: the exporter would treat a dimension of size 1 as a constant.
    shown = torch.zeros(2, 1, size, size, size)
    with _quiet():
        program = torch.onnx.export(
            graph,
            (shown,),
            dynamo=True,
            opset_version=max(OPSET, 18),  # the exporter's minimum
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    difference = 0.0
    for example in examples:
        (ours,) = session.run([OUTPUT], {INPUT: example[None]})
        with torch.inference_mode():
            theirs = graph(torch.from_numpy(example[None])).numpy()
        difference = max(difference, float(np.abs(ours - theirs).max()))
    # Negated, so that NaN fails too.
    if not difference < MAX_DIFFERENCE:
        reason = f"probabilities differ by {difference:.2g}, more than {MAX_DIFFERENCE:g}"
        raise RunError("export-differs", reason)
    return model, difference


def write_localizer(model: onnx.ModelProto, card: LocalizerCard, out: Path) -> None:
    """Write the model with its card inside, and the card as a ``.json`` file beside it.

    Raises
    ------
    RunError
        ``run-unwritable`` if the disk is full or fails; previous files are kept.
    """
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA_KEY: card.to_text()})
    onnx.checker.check_model(model)
    write_bytes(out, model.SerializeToString())
    write_text(out.with_suffix(".json"), json.dumps(card.to_json(), indent=1) + "\n")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about its internals and about torchvision."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
