"""Process one study, from fetching its objects to the commit.

The steps are: fetch, read the volume, make the overview, find the vertebrae, crop, encode, read
back, record. `pipeline.run` schedules the studies; this module is independent of Dask and the CLI.
"""

import hashlib
import hmac
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import StudyConfig
from pipeline.dicom.series.preference import SeriesRule
from pipeline.dicom.volume import StudyVolume, read_volume
from pipeline.source.listing import StudyListing
from pipeline.study_inputs import StudyInputs
from pipeline.study_rules import check_identity, check_share
from pipeline.vertebrae.cropping import box_bounds, crop_box, crop_mask
from pipeline.vertebrae.locate import (
    Localization,
    LocatedVertebra,
    Overview,
    find_focus,
    find_locator,
    locate_by_mask,
    locate_by_network,
)
from pipeline.vertebrae.nifti import LabelMask, read_mask
from pipeline.vertebrae.onnx_network import open_network
from pipeline.vertebrae.overview import make_overview
from storage_schemas import arrays, crops
from storage_schemas.canonical import sha256_voxels
from storage_schemas.errors import RunError, StudyError, reason_of
from storage_schemas.objects import ObjectFolder
from storage_schemas.outcomes import is_refused, is_unused
from storage_schemas.records import (
    CROPPED,
    NOT_LOCALIZED,
    InputObject,
    StoredArray,
    StoredSlice,
    StudyRecord,
    StudyVolumeRecord,
    Vertebra,
)
from storage_schemas.store import OVERVIEW, OVERVIEW_LEVELS, StudyStore
from storage_schemas.study_key import StudyKey

SALT_VARIABLE = "CSPINE_PATIENT_SALT"


@dataclass(frozen=True)
class StudyRow:
    """Result of a task for one study, without pixels.

    Parameters
    ----------
    study : str
    outcome : str
        ``committed``, ``quarantined`` or ``failed``.
    kind, reason : str
        Kind and reason of the error; empty if committed.
    objects, refused, unused, slices, crops : int
        Number of objects, refused objects, unused objects, slices and crops.
    bytes_in, bytes_out : int
        Bytes fetched and stored.
    seconds : float
        Wall time of the task.
    locate_seconds : float
        Part of `seconds` spent on finding the vertebrae, by mask or by network.
    run : str
        Random name of the run that submitted the study.
    """

    study: str
    outcome: str
    kind: str = ""
    reason: str = ""
    objects: int = 0
    refused: int = 0
    unused: int = 0
    slices: int = 0
    crops: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    locate_seconds: float = 0.0
    run: str = ""


def run_study(
    listing: StudyListing,
    config: StudyConfig,
    store_url: str,
    threads: int | None = None,
    may_commit: Callable[[], None] | None = None,
) -> StudyRow:
    """Process one study and commit the result: crops or a quarantine record.

    Parameters
    ----------
    listing : StudyListing
        The study's objects.
    config : StudyConfig
        What to do with them.
    store_url : str
        URL of the store. It is opened by the task, so that tasks contain no credentials.
    threads : int, optional
        For decoding; all cores by default.
    may_commit : callable, optional
        Called before the commit; raises if this run may no longer write to the store.
    """
    started = time.perf_counter()
    times: dict[str, float] = {}
    record, objects = process_study(listing, config, threads, times)
    if may_commit is not None:
        may_commit()
    StudyStore(store_url).commit(record, objects)
    return StudyRow(
        study=record.study,
        outcome=record.outcome,
        kind=record.kind,
        reason=record.reason,
        objects=len(record.inputs),
        refused=sum(is_refused(entry.outcome) for entry in record.inputs),
        unused=sum(is_unused(entry.outcome) for entry in record.inputs),
        slices=len(record.volume.slices) if record.volume else 0,
        crops=sum(entry.outcome == CROPPED for entry in record.vertebrae),
        bytes_in=listing.size,
        bytes_out=sum(map(len, objects.values())),
        seconds=time.perf_counter() - started,
        locate_seconds=times.get("locate", 0.0),
    )


def process_study(
    listing: StudyListing,
    config: StudyConfig,
    threads: int | None = None,
    times: dict[str, float] | None = None,
) -> tuple[StudyRecord, dict[str, bytes]]:
    """Make the record of a study and the objects to store.

    Parameters
    ----------
    listing : StudyListing
        The study's objects.
    config : StudyConfig
        What to do with them.
    threads : int, optional
        For decoding; all cores by default.
    times : dict, optional
        Receives the wall time of ``locate`` in seconds.

    Returns
    -------
    record : StudyRecord
        Record, committed or quarantined, with every object of the listing.
    objects : dict of str to bytes
        Objects to store, by key below ``volumes.zarr``. For a quarantined study only the overview,
        if it has a volume.
    """
    inputs = StudyInputs(listing, hashed=config.hash_keys)
    times = {} if times is None else times
    try:
        if not listing.study:
            StudyKey(listing.study)
        mask = _read_mask(listing, times)
        rule = SeriesRule(listing.series or config.series, find_focus(mask))
        volume = read_volume(inputs.read(), limits=config.limits, threads=threads, rule=rule)
    except StudyError as error:
        inputs.note_error(error)
        return quarantine(listing, config, error, inputs.rows(error)), {}
    inputs.note_volume(volume)
    with ThreadPoolExecutor(1) as aside:  # the digest takes long, and only the record needs it
        digest = aside.submit(sha256_voxels, volume.hu)
        overview = make_overview(volume.hu, volume.geometry)
        try:
            check_identity(listing.study, volume.study)
            check_share((row.outcome for row in inputs.rows()), config.max_bad_share)
            if config.strict and volume.geometry.classes != ("regular",):
                raise StudyError("geometry-irregular", "+".join(volume.geometry.classes))
            began = time.perf_counter()
            try:
                found = _locate(config, volume, overview, mask)
            finally:
                times["locate"] = times.get("locate", 0.0) + time.perf_counter() - began
            return _commit(listing, config, volume, overview, found, inputs, digest)
        except StudyError as error:
            record = quarantine(listing, config, error, inputs.rows(error))
            objects = _store_overview(listing.key, overview)
            shown = replace(
                record,
                series=volume.parts,
                arrays=tuple(_read_back(objects)),
                metadata=_metadata(objects),
            )
            return shown, objects


def quarantine(
    listing: StudyListing,
    config: StudyConfig,
    error: StudyError,
    inputs: tuple[InputObject, ...] | None = None,
) -> StudyRecord:
    """Make the record of a refused study, under a key that is safe to store."""
    if inputs is None:
        inputs = StudyInputs(listing, hashed=config.hash_keys).rows(error)
    return StudyRecord(
        study=listing.key,
        patient=listing.key,
        outcome="quarantined",
        config_sha256=config.digest(masked=listing.mask is not None),
        input_sha256=listing.sha256,
        inputs=inputs,
        kind=error.kind,
        reason=error.detail,
    )


def _read_mask(listing: StudyListing, times: dict[str, float]) -> LabelMask | StudyError | None:
    """Read the study's mask; an error is returned, to be raised once there is an overview."""
    if listing.mask is None:
        return None
    began = time.perf_counter()
    try:
        return read_mask(_fetch_mask(listing.mask.key), listing.study)
    except StudyError as error:
        return error
    finally:
        times["locate"] = time.perf_counter() - began


def _locate(
    config: StudyConfig,
    volume: StudyVolume,
    overview: Overview,
    mask: LabelMask | StudyError | None,
) -> Localization:
    """Find the requested vertebrae by the study's mask, or by the network if it has none."""
    sight = (volume.hu, volume.geometry, overview)
    if isinstance(mask, StudyError):
        raise mask
    if mask is not None:
        return locate_by_mask(*sight, mask, config.mask_labels, config.vertebrae)
    if config.locate_by:
        return find_locator(config.locate_by)(*sight, config.vertebrae)
    if config.localizer is not None:
        return locate_by_network(*sight, open_network(config.localizer), config.vertebrae)
    reason = "the study has no mask and the run no localizer"
    missing = {level: (NOT_LOCALIZED, f"{level}: {reason}") for level in config.vertebrae}
    return Localization("", (), missing)


def _fetch_mask(url: str) -> bytes:
    try:
        return ObjectFolder(url).get("")
    except OSError as error:
        raise RunError("object-unreadable", reason_of(error), key=url) from None


def _commit(
    listing: StudyListing,
    config: StudyConfig,
    volume: StudyVolume,
    overview: Overview,
    localization: Localization,
    inputs: StudyInputs,
    digest: Future[str],
) -> tuple[StudyRecord, dict[str, bytes]]:
    """Crop, encode and make the record; `digest` is the digest of the volume."""
    study = listing.key
    objects = _store_overview(study, overview, localization.overview_levels)
    found = {entry.level: entry for entry in localization.vertebrae}
    vertebrae = []
    for level in config.vertebrae:
        if level not in found:
            vertebrae.append(Vertebra(level, *localization.missing[level]))
            continue
        vertebra, written = _crop(found[level], volume, config, study, localization.localizer)
        vertebrae.append(vertebra)
        objects |= written
    record = StudyRecord(
        study=study,
        patient=_patient(volume) or study,
        outcome="committed",
        config_sha256=config.digest(masked=listing.mask is not None),
        input_sha256=listing.sha256,
        inputs=inputs.rows(),
        localizer=localization.localizer,
        volume=_volume_record(volume, inputs, digest.result()),
        vertebrae=tuple(vertebrae),
        arrays=tuple(_read_back(objects)),
        metadata=_metadata(objects),
        series=volume.parts,
    )
    return record, objects


def _store_overview(
    study: StudyKey, overview: Overview, levels: NDArray[np.uint8] | None = None
) -> dict[str, bytes]:
    """Encode the study's group and overview, and the mask on the overview's grid if given."""
    cube, affine = overview
    objects = crops.create_group(study, {"cspine": {"schema": crops.SCHEMA, "study": study}})
    block = {"cspine": {"study": study, "affine": affine.tolist()}}
    objects |= arrays.create_array(f"{study}/{OVERVIEW}", cube, block)
    if levels is not None:
        objects |= arrays.create_array(f"{study}/{OVERVIEW_LEVELS}", levels, block)
    return objects


def _metadata(objects: dict[str, bytes]) -> tuple[tuple[str, str], ...]:
    """Return key and digest of every ``zarr.json``."""
    return tuple(
        (key, hashlib.sha256(data).hexdigest())
        for key, data in sorted(objects.items())
        if key.endswith("/zarr.json")
    )


def _crop(
    found: LocatedVertebra, volume: StudyVolume, config: StudyConfig, study: str, localizer: str
) -> tuple[Vertebra, dict[str, bytes]]:
    box = crop_box(found.extent, volume.geometry, config.margin_mm)
    vertebra = Vertebra(
        found.level,
        CROPPED,
        box=box_bounds(box),
        extent=box_bounds(found.extent),
        voxels=int(found.inside.sum()),
        mean_hu=round(found.mean_hu, 3),
        score=found.score,
    )
    attributes: dict[str, Any] = {
        "study": study,
        "level": found.level,
        "box": list(box_bounds(box)),
        "source_slices": [origin.instance_number for origin in volume.slices[box[0]]],
        "localizer": localizer,
        "margin_mm": config.margin_mm,
        "masked": True,
    }
    objects = crops.create_crop(
        f"{study}/{found.level}",
        volume.hu[box],
        crop_mask(found, box),
        volume.geometry.crop(box),
        attributes,
    )
    return vertebra, objects


def _read_back(objects: dict[str, bytes]) -> Iterator[StoredArray]:
    """Decode each encoded array again and describe the result."""
    for key in sorted(objects):
        path, is_shard, _ = key.partition("/c/0/0/0")
        if not is_shard:
            continue
        layout = arrays.read_layout(objects[f"{path}/zarr.json"], path)
        voxels = arrays.decode_shard(objects[key], layout, path)
        digest = sha256_voxels(voxels)
        yield StoredArray(path, layout.shape, layout.dtype, digest, len(objects[key]))


def _volume_record(volume: StudyVolume, inputs: StudyInputs, hu_sha256: str) -> StudyVolumeRecord:
    return StudyVolumeRecord(
        series=volume.series,
        scanner=volume.scanner,
        geometry=volume.geometry,
        transposed=volume.orientation.transposed,
        flipped=volume.orientation.flipped,
        slices=tuple(
            StoredSlice(inputs.shown_key(origin.key), origin.frame, origin.instance_number)
            for origin in volume.slices
        ),
        hu_sha256=hu_sha256,
    )


def _patient(volume: StudyVolume) -> str:
    """Return a salted digest of PatientID; empty without a salt or a PatientID."""
    salt = os.environ.get(SALT_VARIABLE, "")
    if not salt or not volume.patient_id:
        return ""
    digest = hmac.new(salt.encode(), volume.patient_id.encode(), "sha256")
    return digest.hexdigest()[:32]
