"""Samples per second into the training step: this loader, numpy alone, and three other loaders.

A sample is the input of a training step: a slice of a vertebra and its two neighbours, native int16
voxels, in a batch padded to its largest slice. All loaders deliver the same samples of the same
crops, shuffled, from a local disk, in one process, taking turns; the best turn counts. The other
loaders store each sample ready-made, as their documentation recommends: one file each (MONAI
PersistentDataset), MDS shards (MosaicML Streaming) or tar shards (WebDataset). Warm data are in the
page cache.

MosaicML Streaming 0.13 requires numpy < 2.2, transformers < 5 and torchvision, which no environment
of this project can satisfy. It is included if it has been installed separately, without its
dependencies:

    pip install --no-deps --target PEERS mosaicml-streaming Brotli catalogue xxhash zstd pip install
    --no-deps --target PEERS python-snappy cramjam PYTHONPATH=PEERS python benchmarks/loader.py
"""

import argparse
import os
import struct
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import Claim, describe_machine, report
from numcodecs import Blosc
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.cli import main as pipeline_main
from pipeline.phantom import make_cohort
from storage_schemas.arrays import AIR_HU
from storage_schemas.objects import REQUESTS
from storage_schemas.store import VOLUMES, StudyStore
from storage_schemas.targets import COMPETITION
from training.data.cohort import Study, labelled, read_cohort
from training.data.crop_buffer import CropBuffer, open_buffer
from training.data.inputs import SliceIndex, index_slices
from training.models.slice_training import slice_examples

PACKAGES = ("torch", "numpy", "numcodecs", "monai", "webdataset")
BATCH = 32
TRIM_MM = 8.0
COLD = "this loader, cold"
KEPT = "reading and decompressing alone"
THROWN_AWAY = "the same, discarded at once"
Read = Callable[[], Iterator[Tensor]]
"""One pass over all samples, as batches."""


# ---- the samples ---------------------------------------------------------------------------------


def make_store(folder: Path, studies: int, size: int, slices: int) -> str:
    """Preprocess a phantom cohort; return the store."""
    source, store = folder / "source", folder / "store"
    make_cohort(source, studies=studies, seed=0, size=size, slices=slices)
    arguments = ["run", str(source), str(store), "--masks", str(source / "segmentations")]
    if pipeline_main([*arguments, "--labels", str(source / "train.csv")]):
        raise SystemExit("the cohort could not be preprocessed")
    return str(store)


def native(buffer: CropBuffer, crop: int, z: int) -> NDArray[np.int16]:
    """Return one sample, shape (3, rows, columns)."""
    voxels = buffer.crop(crop)
    if 0 < z < len(voxels) - 1:
        return voxels[z - 1 : z + 2]
    return voxels[np.clip([z - 1, z, z + 1], 0, len(voxels) - 1)]


def collate(samples: Sequence[NDArray[np.int16]]) -> Tensor:
    """Combine samples into one batch, padded with air."""
    rows, columns = np.max([sample.shape[1:] for sample in samples], axis=0)
    batch = np.full((len(samples), 3, rows, columns), AIR_HU, np.int16)
    for place, sample in zip(batch, samples, strict=True):
        place[:, : sample.shape[1], : sample.shape[2]] = sample
    return torch.from_numpy(batch)


# ---- loaders -------------------------------------------------------------------------------------


def this_loader(buffer: CropBuffer, index: SliceIndex, order: NDArray[np.int64]) -> Read:
    """The loader used in training."""
    dataset = slice_examples(buffer, index)

    def read() -> Iterator[Tensor]:
        loader = DataLoader(
            dataset, batch_size=BATCH, sampler=order.tolist(), collate_fn=lambda batch: batch
        )
        for batch in loader:
            yield batch["hu"]

    return read


def memmap(buffer: CropBuffer, index: SliceIndex, order: NDArray[np.int64]) -> Read:
    """The same voxels with numpy alone, as the upper limit."""

    def read() -> Iterator[Tensor]:
        for start in range(0, len(order), BATCH):
            items = order[start : start + BATCH]
            chosen = zip(index.crop[items].tolist(), index.z[items].tolist(), strict=True)
            yield collate([native(buffer, crop, z) for crop, z in chosen])

    return read


class _Samples(Dataset[Any]):
    def __init__(self, buffer: CropBuffer, index: SliceIndex) -> None:
        self._buffer, self._index = buffer, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return {"crop": int(self._index.crop[item]), "z": int(self._index.z[item])}


def monai_persistent(
    buffer: CropBuffer, index: SliceIndex, order: NDArray[np.int64], folder: Path
) -> Read:
    """One file per sample, written at its first use."""
    from monai.data import PersistentDataset
    from monai.transforms import Lambda

    take = Lambda(lambda sample: torch.from_numpy(np.array(native(buffer, **sample))))
    items = [_Samples(buffer, index)[item] for item in range(len(index))]
    dataset = PersistentDataset(items, [take], cache_dir=folder / "monai")

    def read() -> Iterator[Tensor]:
        yield from DataLoader(
            dataset,
            batch_size=BATCH,
            sampler=order.tolist(),
            collate_fn=lambda batch: collate([np.asarray(sample) for sample in batch]),
        )

    return read


def web_dataset(
    buffer: CropBuffer, index: SliceIndex, order: NDArray[np.int64], folder: Path
) -> Read:
    """Tar shards, read sequentially and shuffled in a buffer of a thousand samples."""
    import webdataset

    place = folder / "web"
    place.mkdir()
    with webdataset.ShardWriter(str(place / "%04d.tar"), maxcount=1000, verbose=0) as writer:
        for number in order.tolist():
            sample = np.array(native(buffer, int(index.crop[number]), int(index.z[number])))
            writer.write({"__key__": f"{number:08}", "npy": sample})
    tars = sorted(str(path) for path in place.iterdir())

    def read() -> Iterator[Tensor]:
        samples = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0)
        chosen = samples.shuffle(1000).decode().to_tuple("npy").map(lambda sample: sample[0])
        yield from DataLoader(chosen, batch_size=BATCH, collate_fn=collate)

    return read


def mosaic(buffer: CropBuffer, index: SliceIndex, order: NDArray[np.int64], folder: Path) -> Read:
    """MDS shards, shuffled by the library."""
    _pretend_torchvision()
    from streaming import MDSWriter, StreamingDataset

    place = str(folder / "mosaic")
    with MDSWriter(out=place, columns={"hu": "ndarray:int16"}) as writer:
        for crop, z in zip(index.crop.tolist(), index.z.tolist(), strict=True):
            writer.write({"hu": np.array(native(buffer, crop, z))})
    dataset = StreamingDataset(local=place, shuffle=True, batch_size=BATCH)

    def read() -> Iterator[Tensor]:
        yield from DataLoader(
            dataset,
            batch_size=BATCH,
            collate_fn=lambda batch: collate([sample["hu"] for sample in batch]),
        )

    return read


def _pretend_torchvision() -> None:
    """Provide a stub of torchvision, which Streaming imports for pictures not used here."""
    if "torchvision" in sys.modules:
        return
    for name in ("", ".datasets", ".datasets.folder", ".transforms", ".transforms.functional"):
        module: Any = types.ModuleType(f"torchvision{name}")
        module.VisionDataset = object
        module.to_tensor = module.ToTensor = module.has_file_allowed_extension = None
        sys.modules[f"torchvision{name}"] = module


PEERS: dict[str, Callable[..., Read]] = {
    "MONAI PersistentDataset": monai_persistent,
    "MosaicML Streaming": mosaic,
    "WebDataset": web_dataset,
}


# ---- the race ------------------------------------------------------------------------------------


def forget(paths: Sequence[Path]) -> None:
    """Ask the operating system to drop files from its page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def bare_read(shards: Sequence[tuple[Path, int]], *, keep: bool) -> list[list[bytes]]:
    """Read and decompress shards with numcodecs alone, with the loader's parallelism.

    Each entry is a path and its number of slabs. The results are kept in memory, or discarded slab
    by slab, which allocates no new memory.
    """
    codec = Blosc()

    def read(shard: tuple[Path, int]) -> list[bytes]:
        path, slabs = shard
        data = memoryview(path.read_bytes())
        places = struct.iter_unpack("<QQ", data[-16 * slabs - 4 : -4])
        decoded = (codec.decode(data[offset : offset + length - 4]) for offset, length in places)
        return [slab for slab in decoded if keep]

    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(read, shards))


def race_cold(
    store: StudyStore, studies: Sequence[Study], folder: Path, turns: int
) -> dict[str, float]:
    """Best seconds to load a round from the store, and to read its shards with the bare loop.

    Releasing the memory or the file is not included.
    """
    vertebrae = [vertebra for study in studies for vertebra in study.vertebrae]
    paths = [Path(store.url) / VOLUMES / vertebra.path / "c/0/0/0" for vertebra in vertebrae]
    slabs = [vertebra.layout.slabs for vertebra in vertebrae]
    listed = list(zip(paths, slabs, strict=True))
    loaders: dict[str, Callable[[], AbstractContextManager[object]]] = {
        COLD: lambda: open_buffer(store, studies, COMPETITION, folder),
        KEPT: lambda: nullcontext(bare_read(listed, keep=True)),
        THROWN_AWAY: lambda: nullcontext(bare_read(listed, keep=False)),
    }
    seconds: dict[str, float] = dict.fromkeys(loaders, np.inf)
    for _ in range(turns):
        for name, load in loaders.items():
            forget(paths)
            start = time.perf_counter()
            with load():
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def race_warm(readers: dict[str, Read], samples: int, turns: int) -> dict[str, float]:
    """Best seconds of one pass of each loader; the first pass fills the caches."""
    seconds: dict[str, float] = dict.fromkeys(readers, np.inf)
    for _ in range(turns + 1):
        for name, read in readers.items():
            start = time.perf_counter()
            found = sum(len(batch) for batch in read())
            seconds[name] = min(seconds[name], time.perf_counter() - start)
            if found != samples:
                raise SystemExit(f"{name} delivered {found} of {samples} samples")
    return seconds


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="use a few small studies; takes a minute"
    )
    parser.add_argument("--store", help="use this existing local store")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        size = (4, 256, 100) if options.quick else (12, 512, 240)
        store = StudyStore.open(options.store or make_store(folder, *size))
        studies = labelled(read_cohort(store, COMPETITION), store.url)
        cold = race_cold(store, studies, folder, options.turns)
        with open_buffer(store, studies, COMPETITION, folder) as buffer:
            index = index_slices(buffer, range(len(buffer.vertebrae)), TRIM_MM)
            order = np.random.default_rng(0).permutation(len(index))
            readers = {
                "this loader, warm": this_loader(buffer, index, order),
                "numpy memmap": memmap(buffer, index, order),
            }
            missing = {}
            for name, make in PEERS.items():
                try:
                    readers[name] = make(buffer, index, order, folder)
                except ImportError as error:
                    missing[name] = f"not installed: {error.name}"
            warm = race_warm(readers, len(order), options.turns)
        samples = len(order)
    rates = {name: samples / seconds for name, seconds in (cold | warm).items()}
    ours = rates["this loader, warm"]
    rows: list[dict[str, Any]] = [
        {"loader": name, "samples/s": rate, "relative to this loader, warm": rate / ours, "": ""}
        for name, rate in rates.items()
    ]
    rows += [
        {"loader": name, "samples/s": "-", "relative to this loader, warm": "-", "": why}
        for name, why in missing.items()
    ]
    peers = [rates[name] for name in PEERS if name in rates]
    claims = [
        Claim("warm vs memmap", ours / rates["numpy memmap"], 0.8),
        Claim("warm vs fastest peer", ours / max(peers), 1.0),
        Claim("cold vs bare read", rates[COLD] / rates[KEPT], 0.8),
    ]
    machine = describe_machine(PACKAGES)
    if "MosaicML Streaming" not in missing:
        machine["packages"]["mosaicml-streaming"] = metadata.version("mosaicml-streaming")
    report(machine, rows, claims, options.json)


if __name__ == "__main__":
    main()
