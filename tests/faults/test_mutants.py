"""Damaged objects are read or refused without crashes, and truncated ones give no slice."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.encaps import encapsulate

from pipeline.dicom.volume import read_volume
from storage_schemas.errors import SliceError, StudyError
from storage_schemas.outcomes import UNUSED_KINDS
from tests import made_dicom

MUTANTS = 500
MAX_EXTRA_MIB = 256
ENCAPSULATED = tuple(made_dicom.ENCODERS)
ENHANCED = (made_dicom.EXPLICIT, made_dicom.RLE, "1.2.840.10008.1.2.4.70")


@pytest.mark.parametrize("syntax", [*made_dicom.SYNTAXES, *(f"{s}+" for s in ENHANCED)])
def test_byte_mutants_are_read_or_refused_and_do_not_end_the_process(syntax: str) -> None:
    child = Path(__file__).with_name("mutant_child.py")
    done = subprocess.run(
        [sys.executable, str(child), syntax, str(MUTANTS), "1"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    named = {"ok", *SliceError.kinds, *StudyError.kinds, *UNUSED_KINDS}
    assert set(result["outcomes"]) <= named
    assert sum(result["outcomes"].values()) >= MUTANTS
    assert len(result["outcomes"]) > 2
    assert result["extra_mib"] < MAX_EXTRA_MIB


def stack_of(syntax: str) -> tuple[list[bytes], bytes]:
    """Three slices, and the compressed frame (or the native pixels) of the first."""
    bits = 8 if syntax in made_dicom.EIGHT_BIT else 12
    words = np.stack([made_dicom.smooth_image((64, 64), bits, seed) for seed in range(3)])
    objects = made_dicom.make_stack(words, syntax, BitsStored=bits)
    if syntax in made_dicom.ENCODERS:
        return objects, made_dicom.ENCODERS[syntax](words[0], bits)
    return objects, words[0].tobytes()


def refusals_of(first: bytes, others: list[bytes]) -> list[str]:
    volume = read_volume(made_dicom.name_objects([first, *others]), threads=1)
    assert [s.key for s in volume.slices] == ["001.dcm", "002.dcm"]
    return [error.kind for error in volume.refused]


@pytest.mark.parametrize("syntax", ENCAPSULATED)
def test_a_fragment_truncated_anywhere_is_refused_even_if_its_lengths_agree(syntax: str) -> None:
    objects, piece = stack_of(syntax)
    words = np.zeros((64, 64), np.uint8 if syntax in made_dicom.EIGHT_BIT else np.uint16)
    bits = 8 if syntax in made_dicom.EIGHT_BIT else 12
    for percent in range(10, 100):
        cut = piece[: len(piece) * percent // 100]
        damaged = made_dicom.make_object(words, syntax, pieces=[cut], BitsStored=bits)
        (kind,) = refusals_of(damaged, objects[1:])
        assert kind in ("codestream-truncated", "codestream-mismatch", "decode-failed"), percent


@pytest.mark.parametrize("syntax", made_dicom.SYNTAXES)
def test_an_object_truncated_anywhere_is_refused(syntax: str) -> None:
    objects, _ = stack_of(syntax)
    for percent in range(10, 100):
        (kind,) = refusals_of(objects[0][: len(objects[0]) * percent // 100], objects[1:])
        # Truncated between two elements, the object is valid, but has no pixels.
        assert kind in ("truncated", "header-invalid"), percent


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.51"])
def test_jpeg_data_that_end_early_are_refused_even_with_an_end_marker(syntax: str) -> None:
    objects, piece = stack_of(syntax)
    body = piece[: piece.rindex(b"\xff\xd9")]
    words = np.zeros((64, 64), np.uint16)
    for percent in range(50, 97):
        short = body[: len(body) * percent // 100] + b"\xff\xd9"
        damaged = made_dicom.make_object(words, syntax, pieces=[short], BitsStored=12)
        assert refusals_of(damaged, objects[1:]) == ["decode-failed"], percent


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201"])
def test_a_jpeg_2000_frame_without_its_middle_is_refused_even_with_its_end(syntax: str) -> None:
    objects, piece = stack_of(syntax)
    lost = piece[: len(piece) // 2] + piece[len(piece) // 2 + 100 :]
    damaged = made_dicom.make_object(
        np.zeros((64, 64), np.uint16), syntax, pieces=[lost], BitsStored=12
    )
    assert refusals_of(damaged, objects[1:]) == ["codestream-truncated"]


def test_a_frame_in_any_number_of_fragments_with_or_without_a_table_is_the_same() -> None:
    words = np.stack([made_dicom.smooth_image((64, 64), seed=seed) for seed in range(3)])
    positions = [[0, 0, z] for z in range(3)]
    expected = read_volume([("a", made_dicom.make_enhanced(words, positions, BitsStored=12))]).hu
    for syntax in ("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"):
        for fragments in (1, 2, 5):
            for table in (True, False):
                data = made_dicom.make_enhanced(
                    words, positions, syntax, fragments=fragments, table=table, BitsStored=12
                )
                volume = read_volume([("a", data)])
                np.testing.assert_array_equal(volume.hu, expected)


@pytest.mark.parametrize("offsets", [[], [0], [0, 1]])
def test_two_frames_in_an_object_that_claims_one_are_refused(offsets: list[int]) -> None:
    """Also where the offset table says that both are one: the second would be lost."""
    syntax = "1.2.840.10008.1.2.4.70"
    objects, piece = stack_of(syntax)
    data = made_dicom.make_object(
        np.zeros((64, 64), np.uint16), syntax, pieces=[piece, piece], BitsStored=12
    )
    right = encapsulate([piece, piece])[:16]
    wrong = b"\xfe\xff\x00\xe0" + struct.pack(f"<L{len(offsets)}L", 4 * len(offsets), *offsets)
    assert data.count(right) == 1
    assert refusals_of(data.replace(right, wrong), objects[1:]) == ["length-mismatch"]
