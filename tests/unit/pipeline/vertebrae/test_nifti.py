"""Headers of label masks as programs write them, and as no program should."""

import gzip
import struct
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.vertebrae import gzipped
from pipeline.vertebrae.nifti import LabelMask, read_mask
from storage_schemas.errors import StudyError

SHAPE = (6, 5, 4)
AFFINE = np.array([[-1.0, 0, 0, 9], [0, -1, 0, 8], [0, 0, 2, 7], [0, 0, 0, 1]])
PIXDIM, VOX_OFFSET, DIM, SLOPE, INTER, MAGIC = 76, 108, 40, 112, 116, 344
"""Offsets of fields in a NIfTI-1 header."""


def labels() -> NDArray[np.uint8]:
    found = np.zeros(SHAPE, np.uint8)
    found[1:5, 1:4, 1:3] = 3
    found[2, 2, 1] = 4
    return found


def stored(values: NDArray[np.generic] | None = None, endianness: str = "<") -> bytes:
    """The mask with a qform and a sform that agree."""
    given = labels() if values is None else values
    image = nib.Nifti1Image(given, AFFINE, nib.Nifti1Header(endianness=endianness))
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    return image.to_bytes()


def put(data: bytes, offset: int, form: str, *values: float) -> bytes:
    new = struct.pack(f"<{form}", *values)
    return data[:offset] + new + data[offset + len(new) :]


def read(data: bytes) -> LabelMask:
    return read_mask(data, "1.2.nii")


def reason(data: bytes) -> str:
    with pytest.raises(StudyError) as caught:
        read(data)
    assert (caught.value.kind, caught.value.key) == ("mask-unreadable", "1.2.nii")
    return caught.value.detail


@pytest.mark.parametrize(
    ("offset", "shown"),
    [
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (-16.0, "-16"),
        (0.0, "0"),
        (300.0, "300"),
        (352.5, "352.5"),
        (1e30, "1e+30"),
    ],
)
def test_a_vox_offset_that_is_no_place_for_voxels_is_refused(offset: float, shown: str) -> None:
    assert f"vox_offset is {shown}" in reason(put(stored(), VOX_OFFSET, "f", offset))


def test_voxels_that_would_begin_beyond_the_file_are_refused() -> None:
    assert "bytes, its header states" in reason(put(stored(), VOX_OFFSET, "f", 368.0))


def test_voxels_that_would_begin_inside_a_header_extension_are_refused() -> None:
    data = stored()
    extension = struct.pack("<4sii24s", b"\1\0\0\0", 32, 6, b"comment")
    moved = put(data[:348] + extension + data[352:], VOX_OFFSET, "f", 384.0)
    np.testing.assert_array_equal(read(moved).labels, labels())
    assert "header extension" in reason(put(moved, VOX_OFFSET, "f", 352.0))


@pytest.mark.parametrize(
    "dim",
    [
        (3, -1, 5, 4),
        (3, 6, 0, 4),
        (3, 6, 5, -4),
        (4, 6, 5, 4, 0),
        (4, 6, 5, 4, 2),
        (0, 6, 5, 4),
        (-3, 6, 5, 4),
        (2, 6, 5, 4),
        (200, 6, 5, 4),
        (3, 32767, 32767, 32767),
    ],
)
def test_sides_that_no_volume_has_are_refused(dim: tuple[int, ...]) -> None:
    assert any(
        word in reason(put(stored(), DIM, f"{len(dim)}h", *dim)) for word in ("dim", "shape")
    )


def test_dimensions_of_one_after_the_third_are_none() -> None:
    np.testing.assert_array_equal(
        read(put(stored(), DIM, "8h", 5, *SHAPE, 1, 1, 0, 0)).labels, labels()
    )


@pytest.mark.parametrize(
    ("slope", "inter"),
    [(0.0, 0.0), (0.0, 5.0), (float("nan"), float("nan")), (1.0, 0.0)],
)
def test_a_slope_of_0_or_nan_scales_nothing(slope: float, inter: float) -> None:
    data = put(put(stored(), SLOPE, "f", slope), INTER, "f", inter)
    np.testing.assert_array_equal(read(data).labels, labels())


def test_a_slope_that_is_rounded_gives_whole_labels() -> None:
    data = put(stored(labels().astype(np.int16) * 10), SLOPE, "ff", 0.1, 0.0)
    np.testing.assert_array_equal(read(data).labels, labels())


@pytest.mark.parametrize(
    ("slope", "inter", "word"),
    [
        (0.5, 0.0, "whole labels"),
        (-1.0, 0.0, "whole labels"),
        (1.0, float("nan"), "finite"),
        (float("inf"), 0.0, "finite"),
    ],
)
def test_a_scale_that_makes_no_labels_is_refused(slope: float, inter: float, word: str) -> None:
    assert word in reason(put(stored(), SLOPE, "ff", slope, inter))


@pytest.mark.parametrize("kind", ["i1", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_whole_labels_of_any_type_and_byte_order_are_read(kind: str) -> None:
    for endianness in "<>":
        data = stored(labels().astype(kind), endianness)
        np.testing.assert_array_equal(read(data).labels, labels())


@pytest.mark.parametrize("value", [2.5, -1.0, 256.0, float("nan"), float("inf")])
def test_floats_that_are_no_labels_are_refused(value: float) -> None:
    assert "whole labels" in reason(stored(np.where(labels() == 4, value, labels())))


@pytest.mark.parametrize("qfac", [1.0, 0.0, 5.0])
def test_a_qform_whose_qfac_is_not_minus_1_turns_no_axis(qfac: float) -> None:
    image = nib.Nifti1Image(labels(), None)
    image.set_qform(AFFINE, 1)
    found = read(put(image.to_bytes(), PIXDIM, "f", qfac))
    expected = read(image.to_bytes())
    np.testing.assert_allclose(found.index_from_lps, expected.index_from_lps)


def test_a_negative_qfac_turns_the_third_axis() -> None:
    turned = AFFINE @ np.diag([1, 1, -1, 1])
    image = nib.Nifti1Image(labels(), None)
    image.set_qform(turned, 1)
    found = read(image.to_bytes())
    lps = np.diag([-1.0, -1, 1, 1]) @ turned
    np.testing.assert_allclose(np.linalg.inv(found.index_from_lps), lps, atol=1e-5)


@pytest.mark.parametrize("pixdim", [0.0, -2.0, float("nan")])
def test_voxels_without_a_size_are_refused_where_only_the_qform_places_them(pixdim: float) -> None:
    image = nib.Nifti1Image(labels(), None)
    image.set_qform(AFFINE, 1)
    assert "pixdim" in reason(put(image.to_bytes(), PIXDIM + 12, "f", pixdim))
    assert read(put(stored(), PIXDIM + 12, "f", pixdim)).other_affine is None


@pytest.mark.parametrize(("moved", "apart"), [(0.3, False), (0.6, True), (40.0, True)])
def test_a_second_affine_is_kept_where_it_is_over_half_a_voxel_off(
    moved: float, apart: bool
) -> None:
    image = nib.Nifti1Image(labels(), AFFINE)
    other = AFFINE.copy()
    other[0, 3] += moved
    image.set_sform(AFFINE, 1)
    image.set_qform(other, 1)
    found = read(image.to_bytes())
    assert (found.other_affine is not None) == apart
    np.testing.assert_allclose(
        np.linalg.inv(found.index_from_lps), np.diag([-1.0, -1, 1, 1]) @ AFFINE
    )


def test_the_header_of_a_pair_says_what_to_do() -> None:
    pair = nib.Nifti1Pair(labels(), AFFINE)
    assert "one .nii file" in reason(pair.header.binaryblock + bytes(4))
    assert "one .nii file" in reason(put(stored(), MAGIC, "4s", b"ni1\0"))  # type: ignore[arg-type]


def test_what_begins_with_another_number_is_no_nifti() -> None:
    assert "no NIfTI file" in reason(bytes(400))
    assert "no NIfTI file" in reason(b"DICM" * 100)


def bgzip(data: bytes) -> bytes:
    """As bgzip writes: a member a block, and an empty one at the end."""
    blocks = [data[i : i + 100] for i in range(0, len(data), 100)]
    return b"".join(map(gzip.compress, [*blocks, b""]))


def halves(data: bytes) -> bytes:
    return gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])


@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress,
        bgzip,
        halves,
        lambda data: gzip.compress(data) + b"junk",
        lambda data: gzip.compress(data) + bytes(512),
        lambda data: bgzip(data) + b"junk",
        lambda data: gzip.compress(data + b"more"),
        lambda data: data + b"more",
    ],
    ids=["gzip", "bgzip", "halves", "junk", "zeros", "bgzip and junk", "more inside", "more"],
)
def test_a_mask_is_read_however_it_is_packed(packed: Callable[[bytes], bytes]) -> None:
    np.testing.assert_array_equal(read(packed(stored())).labels, labels())


@pytest.mark.parametrize(
    "packed",
    [
        lambda data: gzip.compress(data)[:-1],
        lambda data: gzip.compress(data)[:-40],
        lambda data: halves(data)[:-12],
        lambda data: gzip.compress(data)[:-8] + bytes(8),
        lambda data: gzip.compress(data)[:200] + b"?" + gzip.compress(data)[201:],
    ],
    ids=["end lost", "cut", "second member cut", "another checksum", "a byte changed"],
)
def test_a_damaged_gzip_stream_is_refused(packed: Callable[[bytes], bytes]) -> None:
    values = np.random.default_rng(0).integers(0, 8, SHAPE, np.uint8)
    assert "gzip stream" in reason(packed(stored(values)))


def test_a_bomb_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzipped, "MAX_EXCESS", 1 << 20)
    assert "more than its header states" in reason(gzip.compress(stored() + bytes(64 << 20)))
    assert "are read" in reason(gzip.compress(put(stored(), DIM, "4h", 3, 2000, 2000, 2000)))
