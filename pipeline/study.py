"""One study, from bytes to commit: the way of every slice, readable top to bottom.

Fetch, read the volume, make the overview, find the vertebrae, crop, encode, read back, record. This
module knows neither Dask nor the command line; `pipeline.run` hands it studies.
"""

import hashlib
import hmac
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config import StudyConfig
from pipeline.dicom.volume import StudyVolume, read_volume
from pipeline.source.listing import StudyListing, fetch
from pipeline.study_rules import check_identity, check_share
from pipeline.vertebrae.cropping import box_bounds, crop_box, crop_mask
from pipeline.vertebrae.locate import (
    Localization,
    LocatedVertebra,
    Overview,
    locate_by_mask,
    locate_by_network,
)
from pipeline.vertebrae.nifti import read_mask
from pipeline.vertebrae.onnx_network import open_network
from pipeline.vertebrae.overview import make_overview
from storage_schemas import arrays, crops
from storage_schemas.canonical import sha256_voxels
from storage_schemas.errors import RunError, SliceError, StudyError, reason_of
from storage_schemas.objects import ObjectFolder
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
    """What a task tells about its study: small, without pixels.

    Parameters
    ----------
    study : str
    outcome : str
        ``committed``, ``quarantined`` or ``failed``.
    kind, reason : str
        Why, where not committed.
    objects, refused, slices, crops : int
        Counts.
    bytes_in, bytes_out : int
        Fetched and stored.
    seconds : float
        Wall time of the task.
    locate_seconds : float
        Of these, what finding the vertebrae took, by mask or by network.
    """

    study: str
    outcome: str
    kind: str = ""
    reason: str = ""
    objects: int = 0
    refused: int = 0
    slices: int = 0
    crops: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    locate_seconds: float = 0.0


def run_study(
    listing: StudyListing, config: StudyConfig, store_url: str, threads: int | None = None
) -> StudyRow:
    """Process one study and commit what came of it, be it crops or a quarantine record.

    Parameters
    ----------
    listing : StudyListing
        The study's objects.
    config : StudyConfig
        What to do with them.
    store_url : str
        Where to; opened here, so that no credential travels with the task.
    threads : int, optional
        For decoding; all cores by default.
    """
    started = time.perf_counter()
    times: dict[str, float] = {}
    record, objects = process_study(listing, config, threads, times)
    StudyStore(store_url).commit(record, objects)
    refused = sum(entry.outcome != "stored" for entry in record.inputs)
    return StudyRow(
        study=record.study,
        outcome=record.outcome,
        kind=record.kind,
        reason=record.reason,
        objects=len(record.inputs),
        refused=refused,
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
    """Turn one study's objects into its record and the objects to store.

    Parameters
    ----------
    listing : StudyListing
        The study's objects.
    config : StudyConfig
        What to do with them.
    threads : int, optional
        For decoding; all cores by default.
    times : dict, optional
        Gets the wall time in seconds of ``locate``.

    Returns
    -------
    record : StudyRecord
        Committed or quarantined; every object of the listing stands in it.
    objects : dict of str to bytes
        By key below ``volumes.zarr``; empty for a quarantined study.
    """
    inputs = _Inputs(listing, config)
    times = {} if times is None else times
    try:
        study = StudyKey(listing.study)
        volume = read_volume(inputs.read(), limits=config.limits, threads=threads)
        inputs.note_volume(volume)
        check_identity(study, volume.study)
        check_share((row.outcome for row in inputs.rows()), config.max_bad_share)
        if config.strict and volume.geometry.classes != ("regular",):
            raise StudyError("geometry-irregular", "+".join(volume.geometry.classes), key=study)
        with ThreadPoolExecutor(1) as aside:  # the longest work that nothing else waits for
            digest = aside.submit(sha256_voxels, volume.hu)
            overview = make_overview(volume.hu, volume.geometry)
            began = time.perf_counter()
            try:
                found = _locate(listing, config, volume, overview)
            finally:
                times["locate"] = time.perf_counter() - began
            return _commit(listing, config, volume, overview, found, inputs, digest)
    except StudyError as error:
        for refusal in getattr(error, "refused", ()):
            inputs.note_refusal(refusal)
        return quarantine(listing, config, error, inputs.rows(error)), {}


def quarantine(
    listing: StudyListing,
    config: StudyConfig,
    error: StudyError,
    inputs: tuple[InputObject, ...] | None = None,
) -> StudyRecord:
    """The record of a study that is refused as a whole, under a key that is safe to store."""
    if inputs is None:
        inputs = _Inputs(listing, config).rows(error)
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


class _Inputs:
    """What is known of each listed object so far; in the end every one has an outcome."""

    def __init__(self, listing: StudyListing, config: StudyConfig) -> None:
        self._listing = listing
        self._rows = {
            entry.key: InputObject(
                listing.shown_key(entry.key, hashed=config.hash_keys), entry.size, "", outcome=""
            )
            for entry in listing.objects
        }

    def shown_key(self, key: str) -> str:
        """An object's key as the record shows it."""
        return self._rows[key].key

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Fetch the objects and note their digests."""
        for key, data in fetch(self._listing):
            digest = hashlib.sha256(data).hexdigest()
            self._rows[key] = replace(self._rows[key], size=len(data), sha256=digest)
            yield key, data

    def note_volume(self, volume: StudyVolume) -> None:
        """Note what became of each object; one refused frame refuses no stored neighbour."""
        for refusal in volume.refused:
            self.note_refusal(refusal)
        for origin in volume.slices:
            self._rows[origin.key] = replace(
                self._rows[origin.key],
                outcome="stored",
                reason=self._rows[origin.key].reason,
                transfer_syntax=origin.transfer_syntax,
                decoder=origin.decoder,
            )

    def note_refusal(self, refusal: SliceError) -> None:
        """Note a refused object."""
        row = self._rows[refusal.key]
        self._rows[refusal.key] = replace(row, outcome=refusal.kind, reason=refusal.detail)

    def rows(self, error: StudyError | None = None) -> tuple[InputObject, ...]:
        """All objects by key; those without an outcome of their own share the study's."""
        rows = sorted(self._rows.values(), key=lambda row: row.key)
        if error is None:
            if unknown := [row.key for row in rows if not row.outcome]:
                raise RuntimeError(f"{unknown[0]} has neither been stored nor refused")
            return tuple(rows)
        return tuple(
            row
            if row.outcome not in ("", "stored")
            else replace(row, outcome=error.kind, reason=error.detail)
            for row in rows
        )


def _locate(
    listing: StudyListing, config: StudyConfig, volume: StudyVolume, overview: Overview
) -> Localization:
    """Find the vertebrae that were asked for: by the study's mask, else by the network."""
    sight = (volume.hu, volume.geometry, overview)
    if listing.mask is not None:
        mask = read_mask(_fetch_mask(listing.mask.key), listing.study)
        return locate_by_mask(*sight, mask, config.mask_labels, config.vertebrae)
    if config.localizer is not None:
        return locate_by_network(*sight, open_network(config.localizer), config.vertebrae)
    reason = "the study has no mask and the run no localizer"
    return Localization("", (), dict.fromkeys(config.vertebrae, (NOT_LOCALIZED, reason)))


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
    inputs: _Inputs,
    digest: Future[str],
) -> tuple[StudyRecord, dict[str, bytes]]:
    """Crop, encode and describe; the digest is the whole volume's."""
    study = listing.key
    cube, affine = overview
    objects = crops.create_group(study, {"cspine": {"schema": crops.SCHEMA, "study": study}})
    block = {"cspine": {"study": study, "affine": affine.tolist()}}
    objects |= arrays.create_array(f"{study}/{OVERVIEW}", cube, block)
    if localization.overview_levels is not None:
        levels = localization.overview_levels
        objects |= arrays.create_array(f"{study}/{OVERVIEW_LEVELS}", levels, block)
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
        metadata=tuple(
            (key, hashlib.sha256(data).hexdigest())
            for key, data in sorted(objects.items())
            if key.endswith("/zarr.json")
        ),
    )
    return record, objects


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
    """Describe each array by what its encoded bytes decode to, not by what was meant."""
    for key in sorted(objects):
        path, is_shard, _ = key.partition("/c/0/0/0")
        if not is_shard:
            continue
        layout = arrays.read_layout(objects[f"{path}/zarr.json"], path)
        voxels = arrays.decode_shard(objects[key], layout, path)
        digest = sha256_voxels(voxels)
        yield StoredArray(path, layout.shape, layout.dtype, digest, len(objects[key]))


def _volume_record(volume: StudyVolume, inputs: _Inputs, hu_sha256: str) -> StudyVolumeRecord:
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
    """A salted digest of PatientID; empty where there is no salt or no PatientID."""
    salt = os.environ.get(SALT_VARIABLE, "")
    if not salt or not volume.patient_id:
        return ""
    digest = hmac.new(salt.encode(), volume.patient_id.encode(), "sha256")
    return digest.hexdigest()[:32]
