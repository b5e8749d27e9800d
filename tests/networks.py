"""Small localizers for tests: ONNX graphs of a few operators with a known output."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from storage_schemas.localizer_card import (
    CLASSES,
    INPUT,
    LOCALIZED_LEVELS,
    METADATA_KEY,
    OPSET,
    OUTPUT,
    LevelScore,
    LocalizerCard,
)
from tests.studies import LEVELS, SLICES

SIZE = 32


def card(size: int = SIZE) -> LocalizerCard:
    scores = dict.fromkeys(LOCALIZED_LEVELS, LevelScore(1, 0.9, 1.0))
    return LocalizerCard(size, (("1.1",), ("1.2",)), 0, 8.0, scores, scores, 0, 0.0, {"onnx": "1"})


def block_network(
    size: int = SIZE, threshold_hu: float = 270.0, *, names: Sequence[str] = LOCALIZED_LEVELS
) -> onnx.ModelProto:
    """A network that finds the blocks of `tests.studies`: bone by HU, and levels by height.

    Parameters
    ----------
    names : sequence of str
        Levels of the blocks, from head to feet.
    """
    height = np.arange(size) * SLICES // size
    number = np.clip((height - 1) // 4, 0, LEVELS - 1)  # of the nearest block, from the lowest
    named = np.zeros((1, len(CLASSES), size, 1, 1), np.float32)
    for z, block in enumerate(number):
        named[0, CLASSES.index(names[LEVELS - 1 - block]), z] = 1
    background = np.zeros((1, len(CLASSES), 1, 1, 1), np.float32)
    background[0, 0] = 1
    constants = {
        "threshold": np.array(threshold_hu, np.float32),
        "steepness": np.array(0.1, np.float32),
        "one": np.array(1, np.float32),
        "named": named,
        "background": background,
    }
    nodes = [
        helper.make_node("Sub", [INPUT, "threshold"], ["above"]),
        helper.make_node("Mul", ["above", "steepness"], ["scaled"]),
        helper.make_node("Sigmoid", ["scaled"], ["bone"]),
        helper.make_node("Mul", ["bone", "named"], ["levels"]),
        helper.make_node("Sub", ["one", "bone"], ["rest"]),
        helper.make_node("Mul", ["rest", "background"], ["other"]),
        helper.make_node("Add", ["levels", "other"], [OUTPUT]),
    ]
    return make_network(nodes, constants, size)


def constant_network(probabilities: NDArray[np.float32]) -> onnx.ModelProto:
    """A network with a constant output of shape (9, size, size, size)."""
    size = probabilities.shape[-1]
    nodes = [
        helper.make_node("Mul", [INPUT, "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "output"], [OUTPUT]),
    ]
    constants = {"zero": np.array(0, np.float32), "output": probabilities[None]}
    return make_network(nodes, constants, size)


def make_network(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, NDArray[np.float32]], size: int
) -> onnx.ModelProto:
    side = [size] * 3
    graph = helper.make_graph(
        list(nodes),
        "localizer",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", 1, *side])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", len(CLASSES), *side])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    helper.set_model_props(model, {METADATA_KEY: card(size).to_text()})
    return model


def write_network(path: Path, model: onnx.ModelProto) -> str:
    path.write_bytes(model.SerializeToString())
    return str(path)
