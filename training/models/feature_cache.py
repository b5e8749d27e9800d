"""Encoder features of crops, cached in the run folder for rounds that train the heads alone.

The folder name is the digest of all weights and settings of the encoder and of the input settings.
A different encoder has a different folder, and older folders are removed. Crops are identified by
the digest of their voxels and positions, so the cache is never stale.

::

    RUN/features/<digest>/features.f16      (rows, positions, features), float16
    RUN/features/<digest>/rows.json         row of each crop, by its digest
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from storage_schemas.canonical import canonical_json
from training.config import InputConfig
from training.data.crop_buffer import CropBuffer
from training.devices import device
from training.durable import unwritable, write_text
from training.models.encoders import count_features, read_features, run_encoder
from training.models.sequence_inputs import PatientIndex, gather_patients, make_patient_pixels
from training.models.sequence_model import CervicalSequenceModel

_ARRAY = "features.f16"
_ROWS = "rows.json"
_CROPS_AT_ONCE = 8


def cache_features(
    folder: Path,
    model: CervicalSequenceModel,
    inputs: InputConfig,
    buffer: CropBuffer,
    index: PatientIndex,
    advance: Callable[[], None] = lambda: None,
) -> NDArray[np.float16]:
    """Return the features of all positions, computing and caching those that are missing.

    Parameters
    ----------
    folder : Path
        Folder of the cache, e.g. ``RUN/features``.
    model : CervicalSequenceModel
        Model whose encoder is used.
    inputs : InputConfig
        Input settings of the model.
    buffer : CropBuffer
        Buffer that holds the crops.
    index : PatientIndex
        Crops and positions of the patients.
    advance : callable
        Called without arguments after each computed crop.

    Returns
    -------
    ndarray, shape (patients, levels, positions, features), float16
        Features; 0 for missing positions.
    """
    place = folder / encoder_digest(model, inputs)
    for other in folder.glob("*") if folder.is_dir() else ():
        if other != place:
            shutil.rmtree(other)
    place.mkdir(parents=True, exist_ok=True)
    rows: dict[str, int] = {}
    if (place / _ROWS).is_file():
        rows = json.loads((place / _ROWS).read_text())
    alone = index.alone()
    keys = [_crop_digest(buffer, alone, row) for row in range(len(alone))]
    new = [row for row, key in enumerate(keys) if key not in rows]
    shape = (index.z.shape[2], count_features(model.config.encoder))
    size = int(np.prod(shape)) * np.dtype(np.float16).itemsize
    with unwritable(place), (place / _ARRAY).open("ab") as stream:
        stream.truncate(len(rows) * size)  # drop rows that a killed process left without an entry
        for row, features in zip(new, _encode(model, inputs, buffer, alone, new), strict=True):
            if keys[row] not in rows:
                stream.write(features.tobytes())
                rows[keys[row]] = len(rows)
            advance()
    write_text(place / _ROWS, json.dumps(rows))
    found = np.zeros((*index.z.shape, shape[1]), np.float16)
    if rows:
        kept = np.memmap(place / _ARRAY, np.float16, "r", shape=(len(rows), *shape))
        found[index.crop >= 0] = kept[[rows[key] for key in keys]]
    return found


def encoder_digest(model: CervicalSequenceModel, inputs: InputConfig) -> str:
    """SHA-256, in hexadecimal, of the weights and settings that determine an encoder's features."""
    found = hashlib.sha256(canonical_json(asdict(inputs)))
    settings = model.config.encoder.to_dict()
    for name in ("_name_or_path", "architectures", "dtype", "transformers_version"):
        settings.pop(name, None)  # origin of the checkpoint, which does not affect features
    found.update(canonical_json(settings))
    for name, tensor in sorted(model.encoder.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _crop_digest(buffer: CropBuffer, alone: PatientIndex, row: int) -> str:
    level = int(np.flatnonzero(alone.crop[row] >= 0)[0])
    crop = int(alone.crop[row, level])
    vertebra = buffer.vertebrae[crop]
    found = hashlib.sha256(buffer.crop(crop).tobytes())
    if buffer.masks is not None:
        found.update(buffer.mask(crop).tobytes())
    found.update(repr((vertebra.shape, vertebra.spacing_mm, alone.z[row, level].tolist())).encode())
    return found.hexdigest()


def encode_patients(
    model: CervicalSequenceModel, inputs: InputConfig, buffer: CropBuffer, index: PatientIndex
) -> NDArray[np.float16]:
    """Compute the features of all positions without caching; see `cache_features`."""
    alone = index.alone()
    found = np.zeros((*index.z.shape, count_features(model.config.encoder)), np.float16)
    for place, features in zip(
        np.argwhere(index.crop >= 0),
        _encode(model, inputs, buffer, alone, range(len(alone))),
        strict=True,
    ):
        found[tuple(place)] = features
    return found


@torch.no_grad()
def _encode(
    model: CervicalSequenceModel,
    inputs: InputConfig,
    buffer: CropBuffer,
    alone: PatientIndex,
    rows: Sequence[int],
) -> Iterator[NDArray[np.float16]]:
    """Compute the features of single vertebrae, each of shape (positions, features)."""
    where = device()
    model.eval().to(where)
    for start in range(0, len(rows), _CROPS_AT_ONCE):
        part = alone[np.array(rows[start : start + _CROPS_AT_ONCE])]
        batch = {
            name: each.to(where) for name, each in gather_patients(buffer, part, inputs).items()
        }
        pooled = read_features(
            run_encoder(model.encoder, make_patient_pixels(batch, inputs))
        ).pooled
        found = np.zeros((*part.z.shape, pooled.shape[1]), np.float16)
        found[part.valid] = pooled.float().cpu().numpy()
        yield from found[part.crop >= 0]
