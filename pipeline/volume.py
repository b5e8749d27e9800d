"""One study's objects in, one canonical volume of Hounsfield units out.

Every frame that goes in comes out as a slice of the volume or as a refusal with its kind. The order
of the objects, their names and their numbers change nothing. No file system here, and no store.
"""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.decoders import decode_frame
from pipeline.headers import Header, check_object, read_header, read_planes
from pipeline.hounsfield import check_rescale, write_hounsfield
from pipeline.limits import Limits
from pipeline.pixeldata import check_pixels, read_frames
from pipeline.stack import Candidate, Orientation, Stack, find_stack, make_geometry, most_common
from storage_schemas.errors import SliceError, StudyError
from storage_schemas.geometry import StackGeometry


@dataclass(frozen=True)
class SliceOrigin:
    """Where one slice of the volume came from.

    Parameters
    ----------
    key : str
        The object's key in the source.
    frame : int
        In the object, from 0.
    z : int
        In the volume, from 0 at the feet.
    position : (float, float, float)
        LPS mm of the centre of the slice's first canonical voxel.
    instance_number : int or None
    transfer_syntax : str
    decoder : str
        The rung that decoded it.
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
    """A study as one volume, and what was left out of it.

    Parameters
    ----------
    study, series : str
        UIDs from the headers; empty where these are.
    patient_id : str or None
        Raw, for a salted hash only.
    scanner : str
        12 hex digits that studies of one machine and protocol share; they name nobody.
    hu : ndarray, shape (z, y, x), int16
        Hounsfield units, canonical, C-contiguous; padding is -1024 where it was masked.
    geometry : StackGeometry
    orientation : Orientation
    slices : tuple of SliceOrigin
        z ascending.
    refused : tuple of SliceError
        One for each object or frame that is not in `hu`, by key.
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


class NoVolumeError(StudyError):
    """A study that gave no volume, with the refusals of its objects."""

    refused: tuple[SliceError, ...] = ()


@dataclass(frozen=True)
class _Decoded:
    candidate: Candidate
    decoder: str


def read_volume(
    objects: Iterable[tuple[str, bytes | SliceError]],
    *,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    threads: int | None = None,
    mask_padding: bool = True,
) -> StudyVolume:
    """Read one study.

    Parameters
    ----------
    objects : iterable of (str, bytes)
        Key and content of each object, in any order; an error in place of the content is passed on.
    limits : Limits
    threads : int, optional
        That decode; as many as this process may use processors by default.
    mask_padding : bool
        Whether padded voxels become -1024.

    Raises
    ------
    StudyError
        ``study-mixed``, ``no-axial-stack`` or ``volume-over-budget``; always a `NoVolumeError`,
        which holds the refusals.
    """
    candidates, refused = read_candidates(objects, limits)
    if len(studies := {c.header.study for c in candidates} - {""}) > 1:
        raise _no_volume("study-mixed", f"{len(studies)} StudyInstanceUIDs", refused)
    stack = find_stack(candidates)
    refused += _outside(candidates, stack)
    if stack is None:
        raise _no_volume("no-axial-stack", f"{len(candidates)} CT frames", refused)
    size = 2 * stack.shape[0] * stack.shape[1] * stack.shape[2]
    if size > limits.volume_bytes:
        why = f"{stack.shape} needs {size} bytes against {limits.volume_bytes}"
        raise _no_volume("volume-over-budget", why, refused)
    hu = np.empty(stack.shape, np.int16)
    kept = _decode_stack(stack, hu, refused, limits, threads, mask_padding)
    if len(kept) < 2:
        why = f"{len(kept)} of {len(stack.places)} slices could be decoded"
        raise _no_volume("no-axial-stack", why, refused)
    return _make_volume(stack, kept, _compact(hu, kept), refused)


def read_candidates(
    objects: Iterable[tuple[str, bytes | SliceError]], limits: Limits
) -> tuple[list[Candidate], list[SliceError]]:
    """Read all headers: the frames that could be slices, and the refusals of the others."""
    candidates: list[Candidate] = []
    refused: list[SliceError] = []
    for key, data in objects:
        try:
            if isinstance(data, SliceError):
                raise data
            header = read_header(key, data, limits)
            check_object(header)
            check_pixels(header, limits)
        except SliceError as error:
            refused.append(error)
            continue
        for frame, plane in enumerate(read_planes(header)):
            if isinstance(plane, SliceError):
                refused.append(plane)
            else:
                candidates.append(Candidate(header, frame, plane))
    return candidates, refused


def _outside(candidates: list[Candidate], stack: Stack | None) -> list[SliceError]:
    inside = {id(c) for place in stack.places for c in place} if stack else set()
    return [
        SliceError(
            "not-in-stack",
            f"{_where(c)}{'a localizer' if c.plane.localizer else 'of another stack'}",
            key=c.header.key,
        )
        for c in candidates
        if id(c) not in inside
    ]


def _where(candidate: Candidate) -> str:
    return f"frame {candidate.frame}: " if candidate.header.frames > 1 else ""


def _decode_stack(
    stack: Stack,
    hu: NDArray[np.int16],
    refused: list[SliceError],
    limits: Limits,
    threads: int | None,
    mask_padding: bool,
) -> dict[int, _Decoded]:
    """Decode into `hu`; the slices that could be, by z."""

    def decode(z: int) -> tuple[_Decoded | None, list[SliceError]]:
        errors = []
        rivals = iter(_by_digest(stack.places[z]))
        for candidate in rivals:
            try:
                decoder = _decode(candidate, hu[z], stack.orientation, limits, mask_padding)
            except SliceError as error:
                errors.append(_of_frame(candidate, error))
                continue
            errors += [_duplicate(other) for other in rivals]
            return _Decoded(candidate, decoder), errors
        return None, errors

    kept = {}
    count = threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(count) as pool:
        for z, (decoded, errors) in enumerate(pool.map(decode, range(len(stack.places)))):
            refused += errors
            if decoded:
                kept[z] = decoded
    return kept


def _by_digest(place: tuple[Candidate, ...]) -> list[Candidate]:
    """The frames that claim one position, in an order that depends on their bytes."""
    if len(place) == 1:
        return list(place)

    def rank(candidate: Candidate) -> tuple[bytes, int, str]:
        digest = hashlib.sha256(candidate.header.elements.data).digest()
        return digest, candidate.frame, candidate.header.key

    return sorted(place, key=rank)


def _duplicate(candidate: Candidate) -> SliceError:
    why = f"{_where(candidate)}a second slice at {candidate.plane.position} mm"
    return SliceError("duplicate-slice", why, key=candidate.header.key)


def _of_frame(candidate: Candidate, error: SliceError) -> SliceError:
    return SliceError(error.kind, _where(candidate) + error.detail, key=error.key)


def _decode(
    candidate: Candidate,
    out: NDArray[np.int16],
    orientation: Orientation,
    limits: Limits,
    mask_padding: bool,
) -> str:
    """Decode one frame into its canonical place; returns the decoder's name."""
    header, plane = candidate.header, candidate.plane
    rescale = check_rescale(header.key, plane.slope, plane.intercept)
    piece = read_frames(header)[candidate.frame]
    plain = not (orientation.transposed or any(orientation.flipped[1:]))
    stored = out if plain else np.empty((header.rows, header.columns), np.int16)
    words, decoder = decode_frame(header, piece, limits, stored.view(np.uint16))
    write_hounsfield(
        words,
        stored,
        key=header.key,
        bits_stored=header.bits_stored,
        signed=header.signed,
        rescale=rescale,
        padding=header.padding if mask_padding else None,
    )
    if not plain:
        out[...] = orientation.turn(stored)
    return decoder


def _compact(hu: NDArray[np.int16], kept: dict[int, _Decoded]) -> NDArray[np.int16]:
    """Close the gaps that refused slices left."""
    for target, z in enumerate(sorted(kept)):
        if target != z:
            hu[target] = hu[z]
    return hu[: len(kept)]


def _make_volume(
    stack: Stack, kept: dict[int, _Decoded], hu: NDArray[np.int16], refused: list[SliceError]
) -> StudyVolume:
    decoded = [kept[z] for z in sorted(kept)]
    slices = [d.candidate for d in decoded]
    duplicates = any(error.kind == "duplicate-slice" for error in refused)
    geometry = make_geometry(stack, slices, duplicates=duplicates)
    first = slices[0].header
    return StudyVolume(
        study=first.study,
        series=first.series,
        patient_id=first.patient_id or None,
        scanner=scanner_digest([c.header for c in slices]),
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
        refused=_sorted(refused),
    )


def scanner_digest(headers: Iterable[Header]) -> str:
    """12 hex digits of the technical fields that most of the headers share."""
    fields = most_common((*h.scanner, str(h.signed), str(h.bits_stored), h.syntax) for h in headers)
    return hashlib.sha256("\n".join(fields).encode()).hexdigest()[:12]


def _sorted(refused: list[SliceError]) -> tuple[SliceError, ...]:
    return tuple(sorted(refused, key=lambda e: (e.key, e.kind, e.detail)))


def _no_volume(kind: str, detail: str, refused: list[SliceError]) -> NoVolumeError:
    error = NoVolumeError(kind, detail)
    error.refused = _sorted(refused)
    return error
