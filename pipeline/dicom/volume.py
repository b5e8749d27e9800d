"""Read one study's objects into one canonical volume of Hounsfield units.

Every frame is returned as a slice of the volume, as an error with its kind, or as unused with its
kind. The order and the names of the objects have no effect. This module does no I/O.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.cores import available_cores
from pipeline.dicom.decoders import decode_frame
from pipeline.dicom.headers import Header
from pipeline.dicom.hounsfield import check_rescale, write_hounsfield
from pipeline.dicom.limits import Limits
from pipeline.dicom.pixeldata import read_frames
from pipeline.dicom.precision import find_bits
from pipeline.dicom.selection import (
    Candidate,
    UnusedObject,
    leave_out,
    leave_unused,
    no_volume,
    read_objects,
    sort_refused,
    sort_unused,
    where,
)
from pipeline.dicom.series.choice import Choice, choose_stack, describe_parts
from pipeline.dicom.series.preference import SeriesRule
from pipeline.dicom.stack import Orientation, Stack, make_geometry, most_common
from storage_schemas.errors import SliceError
from storage_schemas.geometry import StackGeometry
from storage_schemas.records import SeriesRecord

MIXED_SHARE = 0.05
"""Maximum fraction of a stack's positions with different slices that no header field distinguishes;
above it the study is refused."""


@dataclass(frozen=True)
class SliceOrigin:
    """Source of one slice of the volume.

    Parameters
    ----------
    key : str
        Key of the object in the source.
    frame : int
        Index of the frame in the object, from 0.
    z : int
        Index of the slice in the volume, from 0 at the feet.
    position : (float, float, float)
        Centre of the first canonical voxel of the slice, LPS, mm.
    instance_number : int or None
    transfer_syntax : str
    decoder : str
        Name of the decoder that decoded the frame.
    """

    key: str
    frame: int
    z: int
    position: tuple[float, float, float]
    instance_number: int | None
    transfer_syntax: str
    decoder: str


@dataclass(frozen=True)
class StudyVolume:
    """The volume of a study, and the objects that are not in it.

    Parameters
    ----------
    study, series : str
        UIDs from the headers; empty if absent.
    patient_id : str or None
        PatientID; used only for a salted hash.
    scanner : str
        Digest of 12 hex digits, shared by studies of one scanner and protocol; not identifying.
    hu : ndarray, shape (z, y, x), int16
        Hounsfield units, canonical, C-contiguous; masked padding is -1024.
    geometry : StackGeometry
    orientation : Orientation
    slices : tuple of SliceOrigin
        Source of each slice, z ascending.
    refused : tuple of SliceError
        Errors of the objects or frames that should be in `hu` and are not, by key.
    unused : tuple of UnusedObject
        Objects or frames that do not belong to the stack, by key.
    parts : tuple of SeriesRecord
        Each part of the study that could be read, and why it was chosen or not.
    """

    study: str
    series: str
    patient_id: str | None = field(repr=False)
    scanner: str
    hu: NDArray[np.int16] = field(repr=False)
    geometry: StackGeometry = field(repr=False)
    orientation: Orientation
    slices: tuple[SliceOrigin, ...] = field(repr=False)
    refused: tuple[SliceError, ...] = field(repr=False)
    unused: tuple[UnusedObject, ...] = field(repr=False)
    parts: tuple[SeriesRecord, ...] = field(repr=False)


@dataclass(frozen=True)
class _Settings:
    limits: Limits
    threads: int
    mask_padding: bool


@dataclass(frozen=True)
class _Decoded:
    candidate: Candidate
    decoder: str


def read_volume(
    objects: Iterable[tuple[str, bytes]],
    *,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    threads: int | None = None,
    mask_padding: bool = True,
    rule: SeriesRule = SeriesRule(),  # noqa: B008 - frozen
) -> StudyVolume:
    """Read one study.

    Parameters
    ----------
    objects : iterable of (str, bytes)
        Key and content of each object, in any order.
    limits : Limits
    threads : int, optional
        Number of decoding threads; one for each core that the process may use by default.
    mask_padding : bool
        Whether padded voxels are set to -1024.
    rule : SeriesRule
        Rule that chooses the series to read.

    Raises
    ------
    NoVolumeError
        Kinds of `pipeline.dicom.series.choice.choose_stack`, ``acquisitions-mixed`` or
        ``nothing-decoded``. The error holds the refused and unused objects.
    """
    choice = choose_stack(read_objects(objects, limits), limits, rule)
    stack, refused, unused = choice.stack, choice.refused, choice.unused
    hu = np.empty(stack.shape, np.int16)
    settings = _Settings(limits, threads or available_cores(), mask_padding)
    kept = _decode_stack(stack, hu, refused, unused, settings)
    if len(kept) < 2:
        refused += [leave_out(d.candidate, "the only slice left") for d in kept.values()]
        why = f"{len(kept)} of {len(stack.places)} slices could be decoded"
        raise no_volume("nothing-decoded", why, refused, unused)
    twice = sum(error.kind == "duplicate-slice" for error in refused)
    if twice > max(1, MIXED_SHARE * len(stack.places)):
        refused += [leave_out(d.candidate, "of a mixture") for d in kept.values()]
        why = f"{twice} slices lie where another one does, and no field tells them apart"
        raise no_volume("acquisitions-mixed", why, refused, unused)
    return _make_volume(choice, kept, _compact(hu, kept))


def _decode_stack(
    stack: Stack,
    hu: NDArray[np.int16],
    refused: list[SliceError],
    unused: list[UnusedObject],
    settings: _Settings,
) -> dict[int, _Decoded]:
    """Decode the stack into `hu`; returns the decoded slices by z."""
    # Once per object, not per frame: a multi-frame object may hold thousands of frames.
    pieces = {id(c.header): _cut(c.header) for place in stack.places for c in place}
    rival_headers = {
        id(c.header): c.header for place in stack.places if len(place) > 1 for c in place
    }
    digests = {
        number: hashlib.sha256(header.elements.data).digest()
        for number, header in rival_headers.items()
    }

    def rank(candidate: Candidate) -> tuple[bytes, int, str]:
        """Order frames at the same position by their bytes, not by their names."""
        digest = digests.get(id(candidate.header), b"")
        return digest, candidate.frame, candidate.header.key

    def decode(z: int) -> tuple[_Decoded | None, list[SliceError], list[UnusedObject]]:
        errors: list[SliceError] = []
        copies: list[UnusedObject] = []
        rivals = iter(sorted(stack.places[z], key=rank))
        for candidate in rivals:
            try:
                frames = pieces[id(candidate.header)]
                decoder = _decode(candidate, frames, hu[z], stack.orientation, settings)
            except SliceError as error:
                errors.append(_of_frame(candidate, error))
                continue
            for rival in rivals:
                spare = np.empty_like(hu[z])
                try:
                    frames = pieces[id(rival.header)]
                    _decode(rival, frames, spare, stack.orientation, settings)
                except SliceError as error:
                    errors.append(_of_frame(rival, error))
                    continue
                if np.array_equal(spare, hu[z]):
                    copies.append(leave_unused(rival, "copy", "the pixels of another object"))
                else:
                    errors.append(_duplicate(rival))
            return _Decoded(candidate, decoder), errors, copies
        return None, errors, copies

    kept = {}
    with ThreadPoolExecutor(settings.threads) as pool:
        # With one core per study, decode directly instead of through a queue.
        spread = map if settings.threads == 1 else pool.map
        for z, (decoded, errors, copies) in enumerate(spread(decode, range(len(stack.places)))):
            refused += errors
            unused += copies
            if decoded:
                kept[z] = decoded
    return kept


def _cut(header: Header) -> list[memoryview] | SliceError:
    try:
        return read_frames(header)
    except SliceError as error:
        return error


def _duplicate(candidate: Candidate) -> SliceError:
    why = f"{where(candidate)}a second slice at {candidate.plane.position} mm"
    return SliceError("duplicate-slice", why, key=candidate.header.key)


def _of_frame(candidate: Candidate, error: SliceError) -> SliceError:
    return SliceError(error.kind, where(candidate) + error.detail, key=error.key)


def _decode(
    candidate: Candidate,
    frames: list[memoryview] | SliceError,
    out: NDArray[np.int16],
    orientation: Orientation,
    settings: _Settings,
) -> str:
    """Decode one frame into `out` in canonical axes; returns the decoder's name."""
    if isinstance(frames, SliceError):
        raise frames
    header, plane = candidate.header, candidate.plane
    rescale = check_rescale(header.key, plane.slope, plane.intercept)
    plain = not (orientation.transposed or any(orientation.flipped[1:]))
    stored = out if plain else np.empty((header.rows, header.columns), np.int16)
    words, decoder = decode_frame(
        header, frames[candidate.frame], settings.limits, stored.view(np.uint16)
    )
    write_hounsfield(
        words,
        stored,
        key=header.key,
        bits_stored=find_bits(header, words, frames[candidate.frame]),
        signed=header.signed,
        rescale=rescale,
        padding=header.padding if settings.mask_padding else None,
    )
    if not plain:
        out[...] = orientation.turn(stored)
    return decoder


def _compact(hu: NDArray[np.int16], kept: dict[int, _Decoded]) -> NDArray[np.int16]:
    """Remove the gaps left by refused slices."""
    for target, z in enumerate(sorted(kept)):
        if target != z:
            hu[target] = hu[z]
    return hu[: len(kept)]


def _make_volume(choice: Choice, kept: dict[int, _Decoded], hu: NDArray[np.int16]) -> StudyVolume:
    stack, refused = choice.stack, choice.refused
    decoded = [kept[z] for z in sorted(kept)]
    slices = [d.candidate for d in decoded]
    duplicates = any(error.kind == "duplicate-slice" for error in refused)
    geometry = make_geometry(stack, slices, duplicates=duplicates)
    headers = [candidate.header for candidate in slices]
    first = headers[0]
    return StudyVolume(
        study=max(header.study for header in headers),  # equal in all headers that have one
        series=first.series,
        patient_id=most_common((header.patient_id,) for header in headers)[0] or None,
        scanner=scanner_digest(headers),
        hu=hu,
        geometry=geometry,
        orientation=stack.orientation,
        slices=tuple(
            SliceOrigin(
                key=d.candidate.header.key,
                frame=d.candidate.frame,
                z=z,
                position=geometry.positions[z],
                instance_number=d.candidate.header.instance_number,
                transfer_syntax=d.candidate.header.syntax,
                decoder=d.decoder,
            )
            for z, d in enumerate(decoded)
        ),
        refused=sort_refused(refused),
        unused=sort_unused(choice.unused),
        parts=describe_parts(choice),
    )


def scanner_digest(headers: Iterable[Header]) -> str:
    """Digest (12 hex digits) of the most frequent technical fields of the headers."""
    fields = most_common((*h.scanner, str(h.signed), str(h.bits_stored), h.syntax) for h in headers)
    return hashlib.sha256("\n".join(fields).encode()).hexdigest()[:12]
