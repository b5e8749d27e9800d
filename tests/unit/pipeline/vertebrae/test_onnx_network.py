"""Files that `pipeline.vertebrae.onnx_network` opens, and those that it refuses."""

from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.vertebrae import onnx_network as network
from pipeline.vertebrae.onnx_network import NetworkFile, choose_network, open_network
from storage_schemas.errors import RunError, StudyError, UsageError
from storage_schemas.localizer_card import CLASSES
from tests.networks import SIZE, block_network, constant_network, write_network


@pytest.fixture(autouse=True)
def _nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_opened", {})


def test_a_network_predicts_the_output_of_its_graph(tmp_path: Path) -> None:
    output = np.random.default_rng(0).random((len(CLASSES), SIZE, SIZE, SIZE)).astype(np.float32)
    output /= output.sum(0)
    file = choose_network(write_network(tmp_path / "m.onnx", constant_network(output)))
    opened = open_network(file)
    assert (opened.size, opened.name) == (SIZE, f"model:{file.sha256}")
    np.testing.assert_array_equal(opened.predict(np.zeros((SIZE,) * 3, np.float32)), output)


def test_a_network_may_be_at_any_url() -> None:
    fsspec.filesystem("memory").pipe_file("/models/m.onnx", block_network().SerializeToString())
    file = choose_network("memory://models/m.onnx")
    assert file.url == "memory:///models/m.onnx"
    assert open_network(file).size == SIZE


def test_a_process_reads_a_network_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    file = choose_network(write_network(path, block_network()))
    path.unlink()
    assert open_network(file) is open_network(file)
    monkeypatch.setattr(network, "_opened", {})  # as in another process
    with pytest.raises(RunError, match="object-unreadable"):
        open_network(file)


def test_a_network_that_changed_since_the_run_began_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_network(path, block_network())
    with pytest.raises(UsageError, match="has changed since"):
        open_network(NetworkFile(str(path), "0" * 64))


def _no_card(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def _foreign_card(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = model.metadata_props[0].value.replace("localizer/1", "x/7")


def _card_of_another_size(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"size":32', '"size":64')


def _input_of_another_name(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"


def _fewer_classes(model: onnx.ModelProto) -> None:
    seven = constant_network(np.zeros((7, SIZE, SIZE, SIZE), np.float32))
    model.graph.CopyFrom(seven.graph)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


def _double_precision(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    model.graph.node.insert(0, helper.make_node("Cast", ["overview"], ["cast"], to=1))
    model.graph.node[1].input[0] = "cast"


def _two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def _a_batch_of_two(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def _weights_beside_the_file(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)


def _an_unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_card, "no card"),
        (_foreign_card, "schema"),
        (_card_of_another_size, "its input is .* not .*64, 64, 64"),
        (_input_of_another_name, "image"),
        (_fewer_classes, "its output is .*7, 32, 32, 32"),
        (_double_precision, "double"),
        (_two_inputs, "more"),
        (_a_batch_of_two, r"its input is .*\[2, 1"),
        (_weights_beside_the_file, "External data"),
        (_an_unknown_operator, "NoSuchOperator"),
    ],
)
def test_a_file_that_is_not_a_localizer_is_refused_with_its_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[onnx.ModelProto], None],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(np.float32(270).tobytes())
    model = block_network()
    damage(model)
    path = write_network(tmp_path / "m.onnx", model)
    with pytest.raises(UsageError, match=message) as caught:
        choose_network(path)
    assert (caught.value.kind, caught.value.key[-7:]) == ("localizer-invalid", "/m.onnx")


@pytest.mark.parametrize("data", [b"", b"no ONNX", block_network().SerializeToString()[:-2000]])
def test_bytes_that_are_not_a_graph_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(UsageError, match="localizer-invalid"):
        choose_network(str(tmp_path / "m.onnx"))


@pytest.mark.parametrize("url", ["/no/such/file.onnx", "nosuchprotocol://a/b.onnx"])
def test_a_network_that_does_not_exist_is_reported(url: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be read.*localizer-invalid"):
        choose_network(url)


def test_a_file_over_the_size_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "MAX_BYTES", 1000)
    with pytest.raises(UsageError, match="more than 1000 bytes"):
        choose_network(write_network(tmp_path / "m.onnx", block_network()))


@pytest.mark.parametrize("value", [np.nan, -0.5, 2.0])
def test_an_output_that_is_not_a_probability_is_refused(tmp_path: Path, value: float) -> None:
    output = np.zeros((len(CLASSES), SIZE, SIZE, SIZE), np.float32)
    output[0] = 1
    output[3, 5, 6, 7] = value
    file = choose_network(write_network(tmp_path / "m.onnx", constant_network(output)))
    with pytest.raises(StudyError, match="vertebra-not-found"):
        open_network(file).predict(np.zeros((SIZE,) * 3, np.float32))
