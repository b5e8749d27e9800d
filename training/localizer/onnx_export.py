"""A trained localizer as the one ONNX file that the pipeline takes, and proof that it is the same.

What the file must hold is said in `storage_schemas.localizer_card`. Weights lie inside it.
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
"""Between the probabilities of the file and of the network; sums in another order differ less."""


def export_network(
    network: LocalizerNetwork, size: int, examples: NDArray[np.float32]
) -> tuple[onnx.ModelProto, float]:
    """Turn a network into an ONNX model and compare the two.

    Parameters
    ----------
    network : LocalizerNetwork
        Trained; it is moved to the CPU.
    size : int
        Voxels along each side of the cube.
    examples : ndarray, shape (n, 1, S, S, S), float32, HU
        Overviews to compare them on.

    Returns
    -------
    model : onnx.ModelProto
    difference : float
        The largest between two probabilities.

    Raises
    ------
    RunError
        ``export-differs`` where that is above `MAX_DIFFERENCE`.
    """
    graph = LocalizerGraph(network).cpu().eval()
    # Two of them, since a number that is one everywhere would be taken for a constant.
    shown = torch.zeros(2, 1, size, size, size)
    with _quiet():
        program = torch.onnx.export(
            graph,
            (shown,),
            dynamo=True,
            opset_version=max(OPSET, 18),  # the exporter's least
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
    # Written so that a difference that is no number fails too.
    if not difference < MAX_DIFFERENCE:
        reason = f"probabilities differ by {difference:.2g}, at most {MAX_DIFFERENCE:g} is allowed"
        raise RunError("export-differs", reason)
    return model, difference


def write_localizer(model: onnx.ModelProto, card: LocalizerCard, out: Path) -> None:
    """Write the model with its card inside, and the card beside it as ``.json``.

    Raises
    ------
    RunError
        ``run-unwritable`` where the disk is full or fails; what stood there is intact.
    """
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA_KEY: card.to_text()})
    onnx.checker.check_model(model)
    write_bytes(out, model.SerializeToString())
    write_text(out.with_suffix(".json"), json.dumps(card.to_json(), indent=1) + "\n")


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own insides, and that torchvision is not there to export."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
