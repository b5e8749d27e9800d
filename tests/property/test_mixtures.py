"""Whatever lies in a study beside one good scan, the scan is read bit for bit, or nothing is."""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dicom.selection import NoVolumeError
from pipeline.dicom.volume import read_volume
from tests import made_dicom
from tests.strangers import PAGE, Objects, hounsfield, one_slice, stack

PLACES = range(10, 26)
GOOD = stack(PLACES, AcquisitionNumber=1, SeriesNumber=2)
OTHER = "1.2.3.4.9"
NAMES_OF_MIXTURES = {"acquisitions-mixed", "too-many-bad-slices"}


def other_set(start: int, count: int, step: float, seed: int, field: tuple[str, Any]) -> Objects:
    places = [start + step * n for n in range(count)]
    name, value = field
    return stack(places, seed, f"x{seed}", 100 * seed, **{"AcquisitionNumber": 1, name: value})


inside = st.integers(10, 20)
JUNK: dict[str, Callable[[int], bytes]] = {
    "._{}.dcm": lambda n: b"\0\5\x16\7" + bytes(90),
    ".DS_Store": lambda n: b"\0\0\0\1Bud1",
    "Thumbs.db": lambda n: b"\xd0\xcf\x11\xe0",
    "LICENSE": lambda n: b"MIT",
    "a{}.json": lambda n: b"{}",
    "m{}.nii.gz": lambda n: b"\x1f\x8b\x08",
    "p{}.png": lambda n: b"\x89PNG\r\n\x1a\n",
    "table.csv": lambda n: b"study,series\n",
}
STRANGERS = st.one_of(
    st.builds(
        lambda name, n: {name.format(n): JUNK[name](n)},
        st.sampled_from(sorted(JUNK)), st.integers(0, 9),
    ),
    st.builds(  # a second phase, kernel or acquisition over a part of the scan, in step or not
        other_set, inside, st.integers(2, 6), st.sampled_from([1.0, 0.5, 0.75]),
        st.integers(1, 9),
        st.sampled_from([
            ("AcquisitionNumber", 2), ("ConvolutionKernel", "SOFT"), ("SliceThickness", 5),
            ("TemporalPositionIdentifier", 2), ("ScanOptions", "OTHER"), ("KVP", 80),
        ]),
    ),
    st.builds(  # a shorter series of its own
        lambda start, count, seed: stack(
            range(start, start + count), seed, f"y{seed}", SeriesInstanceUID=OTHER, SeriesNumber=9
        ),
        inside, st.integers(1, 8), st.integers(1, 9),
    ),
    st.builds(  # any number of reformats or projections
        lambda count, kind: stack(
            [10 + 15 * n / count for n in range(count)], 3, f"z{kind}", SeriesInstanceUID=OTHER,
            ImageType=["DERIVED", "SECONDARY", kind],
        ),
        st.integers(2, 40), st.sampled_from(["MPR", "MIP", "VRT", "REFORMATTED"]),
    ),
    st.builds(
        lambda n: {f"page{n}.dcm": one_slice(
            0, 7, n, ImageType=PAGE, ImagePositionPatient=None, RescaleSlope=None)},
        st.integers(0, 9),
    ),
    st.builds(
        lambda n: {f"scout{n}.dcm": one_slice(
            n, 8, n, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])},
        st.integers(0, 9),
    ),
    st.builds(
        lambda z: {f"copy{z}": GOOD[f"s{z - 10}.dcm"]}, inside
    ),
    st.builds(
        lambda z, n: {f"t{k}.dcm": one_slice(z, 20 + k, 900 + k, AcquisitionNumber=1)
                      for k in range(n)},
        inside, st.integers(3, 9),
    ),
    st.builds(
        lambda z: {f"mr{z}": one_slice(z, 9, SOPClassUID="1.2.840.10008.5.1.4.1.1.4")}, inside
    ),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(strangers=st.lists(STRANGERS, max_size=5), data=st.data())
def test_a_mixture_gives_the_good_scan_bit_for_bit_or_is_refused_by_name(
    strangers: list[Objects], data: st.DataObject
) -> None:
    mixed: Objects = {}
    for more in strangers:
        mixed |= more
    mixed |= GOOD
    order = data.draw(st.permutations(sorted(mixed)))
    refused_as = ""
    try:
        volume = read_volume([(key, mixed[key]) for key in order], threads=1)
    except NoVolumeError as error:
        refused_as = error.kind
    if refused_as:
        assert refused_as in NAMES_OF_MIXTURES
        return
    np.testing.assert_array_equal(volume.hu, hounsfield(PLACES))
    told = [s.key for s in volume.slices]
    told += [e.key for e in (*volume.refused, *volume.unused)]
    assert sorted(told) == sorted(mixed)


def test_the_good_scan_alone_is_read() -> None:
    volume = read_volume(GOOD.items(), threads=1)
    np.testing.assert_array_equal(volume.hu, hounsfield(PLACES))
    assert not volume.refused
    assert not volume.unused
    assert volume.series == made_dicom.SERIES
