"""Open and run the network of a localizer: one ONNX file, opened once per process.

onnxruntime runs the network on one thread, so that crops do not depend on the number of cores; the
other cores process other studies. Not here: the interpretation of the output
(`pipeline.vertebrae.anatomy`).
"""

import hashlib
import os
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import NetworkFile
from storage_schemas.errors import RunError, StudyError, UsageError, reason_of
from storage_schemas.localizer_card import CLASSES, INPUT, METADATA_KEY, OUTPUT, LocalizerCard
from storage_schemas.objects import ObjectFolder

MAX_BYTES = 512 << 20
"""Size limit of the file: a U-Net of 128 million weights; typical ones have 5 to 50 million."""
_TOLERANCE = 1e-3
"""Tolerance of the probabilities' range 0 to 1, and of their sum 1."""


@dataclass(frozen=True)
class Network:
    """An open network.

    Parameters
    ----------
    file : NetworkFile
        URL and digest of the file.
    size : int
        Voxels along each side of the input cube.
    session : onnxruntime.InferenceSession
        Session that runs the network.
    """

    file: NetworkFile
    size: int
    session: Any

    @property
    def name(self) -> str:
        """Name of the localizer in records."""
        return f"model:{self.file.sha256}"

    def predict(self, cube: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict the class probabilities of every voxel.

        Parameters
        ----------
        cube : ndarray, shape (size, size, size), float32, HU
            Overview, shrunk to the size of the network.

        Returns
        -------
        ndarray, shape (classes, size, size, size), float32
            Probabilities in the order of `storage_schemas.localizer_card.CLASSES`; sums to 1.

        Raises
        ------
        StudyError
            ``vertebra-not-found`` where the output is not such an array.
        """
        (output,) = self.session.run([OUTPUT], {INPUT: cube[None, None]})
        probabilities: NDArray[np.float32] = output[0]
        # NaN fails this test too.
        if not (
            probabilities.shape == (len(CLASSES), *cube.shape)
            and probabilities.min() >= -_TOLERANCE
            and abs(probabilities.sum(0) - 1).max() <= _TOLERANCE
        ):
            raise StudyError("vertebra-not-found", "the localizer gives no probabilities for it")
        return probabilities


_opened: dict[str, Network] = {}
_lock = threading.Lock()


def choose_network(url: str) -> NetworkFile:
    """Read and validate the network of a run.

    Parameters
    ----------
    url : str
        Path or fsspec URL of the ONNX file.

    Raises
    ------
    UsageError
        ``localizer-invalid`` where the file cannot be read, is too large, or is not a localizer.
    """
    try:
        folder = ObjectFolder(url)
        data = _read(folder)
    except (OSError, ValueError, ImportError) as error:
        raise _invalid(f"cannot be read: {reason_of(error)}", url) from None
    file = NetworkFile(folder.url_of(""), hashlib.sha256(data).hexdigest())
    with _lock:
        _keep(file, data)
    return file


def open_network(file: NetworkFile) -> Network:
    """Open the network of a run; a process reads the file once.

    Parameters
    ----------
    file : NetworkFile
        URL and digest of the file, from `choose_network`.

    Raises
    ------
    RunError
        ``object-unreadable`` where the file cannot be read.
    UsageError
        ``localizer-invalid`` where the file has changed since the run began.
    """
    with _lock:
        if file.sha256 not in _opened:
            try:
                data = _read(ObjectFolder(file.url))
            except OSError as error:
                raise RunError("object-unreadable", reason_of(error), key=file.url) from None
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise _invalid("it has changed since the run began", file.url)
            _keep(file, data)
        return _opened[file.sha256]


def _read(folder: ObjectFolder) -> bytes:
    data = folder.get("", 0, MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _invalid(f"it has more than {MAX_BYTES} bytes", folder.url)
    return data


def _keep(file: NetworkFile, data: bytes) -> None:
    """Open a network and close any other one, since a process needs only one at a time."""
    network = _open(file, data)
    _opened.clear()
    _opened[file.sha256] = network


def _open(file: NetworkFile, data: bytes) -> Network:
    # Imported here because it takes time and memory in every worker, and few runs need it.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised too
    options.enable_cpu_mem_arena = False  # free memory between studies
    # Weights outside the file are searched for in a folder that cannot have any.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  # its exceptions have no common base class
        raise _invalid(f"onnxruntime refuses it: {error}", file.url) from None
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise _invalid("it carries no card", file.url)
    card = LocalizerCard.from_text(text, file.url)
    side = [card.size] * 3
    _check_ends("input", session.get_inputs(), INPUT, [1, *side], file.url)
    _check_ends("output", session.get_outputs(), OUTPUT, [len(CLASSES), *side], file.url)
    return Network(file, card.size, session)


def _check_ends(what: str, ends: list[Any], name: str, shape: list[int], url: str) -> None:
    """Check that the inputs or outputs are one tensor of the given name, float32, and shape."""
    found = [(end.name, end.type, list(end.shape)) for end in ends]
    batch = next((end.shape[0] for end in ends if isinstance(end.shape[0], str)), None)
    allowed = [[(name, "tensor(float)", [n, *shape])] for n in (1, None, batch)]
    if found not in allowed:
        raise _invalid(f"its {what} is {found}, not {name}, float, {['n', *shape]}", url)


def _invalid(detail: str, key: str) -> UsageError:
    return UsageError("localizer-invalid", detail, key=key)
