"""Of any mixture of slices, the volume is one scan, or the study is refused by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.dicom.selection import NoVolumeError
from pipeline.dicom.series.preference import SeriesRule
from pipeline.dicom.volume import StudyVolume, read_volume
from tests import made_dicom
from tests.strangers import PAGE, Objects, hounsfield, one_slice, stack, words

TWENTY = range(20)
GOOD = stack(TWENTY)
OTHER = "1.2.3.4.9"


@dataclass(frozen=True)
class Case:
    """What lies in the study beside others, and the volume that must be read."""

    name: str
    objects: Callable[[], Objects]
    expected: NDArray[np.int16]
    unused: dict[str, int]


def beside(more: Objects) -> Callable[[], Objects]:
    return lambda: GOOD | more


def twice(field: str, first: Any, second: Any, shift: float = 0.0) -> Callable[[], Objects]:
    """Two sets of one series that differ in a field: twenty slices, and fifteen others."""

    def make() -> Objects:
        others = [z + shift for z in range(2, 17)]
        return stack(TWENTY, **{field: first}) | stack(others, 1, "t", 101, **{field: second})

    return make


FIELDS: dict[str, tuple[Any, Any]] = {
    "AcquisitionNumber": (1, 2),
    "ConvolutionKernel": ("BONE", "SOFT"),
    "SliceThickness": (1, 5),
    "ContrastBolusAgent": (None, "agent"),
    "TemporalPositionIdentifier": (1, 2),
    "ScanOptions": ("HELICAL MODE", "AXIAL MODE"),
    "StationName": ("one", "two"),
    "ReconstructionDiameter": (250, 180),
    "FrameOfReferenceUID": ("1.2.5", "1.2.6"),
    "KVP": (120, 80),
    "NominalPercentageOfCardiacPhase": (30.0, 70.0),
    "AcquisitionTime": ("101010.5", "101500"),
    "ContentTime": ("101010.5", "101500"),
}


def in_step_and_not() -> list[Case]:
    cases = []
    for field, values in FIELDS.items():
        pair = tuple(v for v in values)
        if pair[0] is None:
            make = lambda f=field, p=pair, s=0.0: (  # noqa: E731
                stack(TWENTY) | stack([z + s for z in range(2, 17)], 1, "t", 101, **{f: p[1]})
            )
            out = lambda f=field, p=pair: (  # noqa: E731
                stack(TWENTY) | stack([z + 0.5 for z in range(2, 17)], 1, "t", 101, **{f: p[1]})
            )
        else:
            make, out = twice(field, *pair), twice(field, *pair, shift=0.5)
        where = f"{field} at the same positions"
        cases.append(Case(where, make, hounsfield(TWENTY), {"other-set": 15}))
        cases.append(Case(f"{field} half a step off", out, hounsfield(TWENTY), {"other-set": 15}))
    return cases


def oblique() -> Objects:
    c, s = math.cos(math.radians(30)), math.sin(math.radians(30))
    return {
        f"q{i}.dcm": one_slice(
            0, 3, i + 1, SeriesInstanceUID=OTHER,
            ImagePositionPatient=[0, round(-s * i, 5), round(c * i, 5)],
            ImageOrientationPatient=[1, 0, 0, 0, c, s],
        )
        for i in range(60)
    }  # fmt: skip


def turned(orientation: list[int], axis: int) -> Objects:
    def place(i: int) -> list[int]:
        return [i if k == axis else 0 for k in range(3)]

    return {
        f"r{axis}{i}.dcm": one_slice(
            0, 4, i + 1, SeriesInstanceUID=OTHER, ImagePositionPatient=place(i),
            ImageOrientationPatient=orientation,
        )
        for i in range(60)
    }  # fmt: skip


def colour_page(number: int) -> bytes:
    data = made_dicom.make_dataset(
        np.zeros((ROWS, ROWS), np.uint8), ImageType=["DERIVED", "SECONDARY", "VRT"],
        SamplesPerPixel=3, PhotometricInterpretation="RGB", InstanceNumber=number,
    )  # fmt: skip
    data.PlanarConfiguration = 0
    data.PixelData, data["PixelData"].VR = bytes(3 * ROWS * ROWS), "OW"
    return made_dicom.write(data, made_dicom.EXPLICIT)


ROWS = 12


def typed(kind: list[str], count: int = 60, series: str = OTHER, **fields: Any) -> Objects:
    places = [z * 20 / count for z in range(count)]
    return stack(places, 2, "o", 1, SeriesInstanceUID=series, ImageType=kind, **fields)


PAGES = {
    f"p{n}.dcm": one_slice(
        0, 5, 500 + n, ImageType=PAGE, ImagePositionPatient=None, ImageOrientationPatient=None,
        RescaleSlope=None, RescaleIntercept=None,
    )
    for n in range(8)
}  # fmt: skip
SCOUT = {
    "scout.dcm": one_slice(
        0, 6, 99, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
    )
}  # fmt: skip
AXIAL_SCOUTS = typed(["ORIGINAL", "PRIMARY", "LOCALIZER"])
TRACKING = {f"m{n}.dcm": one_slice(7, 10 + n, 200 + n) for n in range(12)}
BEFORE = {f"m{n}.dcm": one_slice(7, 10 + n, n - 50) for n in range(12)}
SIXTY = 20

CASES = [
    *in_step_and_not(),
    Case("MPR in a series of its own", beside(typed(["DERIVED", "SECONDARY", "MPR"])),
         hounsfield(TWENTY), {"other-series": 60}),
    Case("MPR in the same series", beside(typed(["DERIVED", "SECONDARY", "MPR"],
         series=made_dicom.SERIES)), hounsfield(TWENTY), {"other-set": 60}),
    Case("GE reformat", beside(typed(["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"])),
         hounsfield(TWENTY), {"other-series": 60}),
    Case("MIP", beside(typed(["DERIVED", "SECONDARY", "MIP"])), hounsfield(TWENTY),
         {"projection": 60}),
    Case("Siemens MIP", beside(typed(["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MIP"])),
         hounsfield(TWENTY), {"projection": 60}),
    Case("enhanced maximum", beside(typed(["DERIVED", "PRIMARY", "VOLUME", "MAXIMUM"])),
         hounsfield(TWENTY), {"projection": 60}),
    Case("volume rendering in grey", beside(typed(["DERIVED", "SECONDARY", "VRT"])),
         hounsfield(TWENTY), {"projection": 60}),
    Case("derived without more", beside(typed(["DERIVED", "SECONDARY", "AXIAL"])),
         hounsfield(TWENTY), {"other-series": 60}),
    Case("reformat told by its description alone", beside(typed(["ORIGINAL", "PRIMARY"],
         SeriesDescription="C-Spine MPR sag")), hounsfield(TWENTY), {"other-series": 60}),
    Case("oblique reformat that calls itself original", beside(oblique()), hounsfield(TWENTY),
         {"other-series": 60}),
    Case("sagittal", beside(turned([0, 1, 0, 0, 0, -1], 0)), hounsfield(TWENTY),
         {"other-series": 60}),
    Case("coronal", beside(turned([1, 0, 0, 0, 0, -1], 1)), hounsfield(TWENTY),
         {"other-series": 60}),
    Case("colour pages in the series", beside({f"c{n}.dcm": colour_page(n) for n in range(9)}),
         hounsfield(TWENTY), {"page": 9}),
    Case("dose pages in the series", beside(PAGES), hounsfield(TWENTY), {"page": 8}),
    Case("a scout in the series", beside(SCOUT), hounsfield(TWENTY), {"scout": 1}),
    Case("axial scouts", beside(AXIAL_SCOUTS), hounsfield(TWENTY), {"scout": 60}),
    Case("bolus tracking in the series", beside(TRACKING), hounsfield(TWENTY), {"tracking": 12}),
    Case("bolus tracking before the scan", beside(BEFORE), hounsfield(TWENTY), {"tracking": 12}),
    Case("bolus tracking in a series of its own", beside({
        f"m{n}.dcm": one_slice(7, 10 + n, 200 + n, SeriesInstanceUID=OTHER) for n in range(60)}),
        hounsfield(TWENTY), {"other-series": 60}),
    Case("monitoring by its image type", beside(typed(["ORIGINAL", "PRIMARY", "MONITORING"])),
         hounsfield(TWENTY), {"tracking": 60}),
    Case("a longer head series", lambda: stack(TWENTY, BodyPartExamined="CSPINE")
         | stack(range(200, 260), 1, "h", SeriesInstanceUID=OTHER, BodyPartExamined="HEAD"),
         hounsfield(TWENTY), {"other-series": 60}),
    Case("a head series told by its description", lambda: stack(
         TWENTY, BodyPartExamined="HEAD", SeriesDescription="C-Spine 1.0 bone")
         | stack(range(200, 260), 1, "h", SeriesInstanceUID=OTHER, BodyPartExamined="HEAD",
                 SeriesDescription="Head 1.0"), hounsfield(TWENTY), {"other-series": 60}),
    Case("a chest series", lambda: stack(TWENTY, ProtocolName="NECK")
         | stack(range(-260, -200), 1, "h", SeriesInstanceUID=OTHER, ProtocolName="CHEST"),
         hounsfield(TWENTY), {"other-series": 60}),
    Case("a soft kernel with the lower UID", lambda: stack(TWENTY, ConvolutionKernel="B70f")
         | stack(TWENTY, 1, "t", SeriesInstanceUID="1.2.3.4.1", ConvolutionKernel="B30f"),
         hounsfield(TWENTY), {"other-series": 20}),
    Case("a thick bone series", lambda: stack(TWENTY, ConvolutionKernel="STANDARD")
         | stack(range(0, 20, 4), 1, "t", SeriesInstanceUID=OTHER, ConvolutionKernel="BONEPLUS"),
         hounsfield(TWENTY), {"other-series": 5}),
    Case("a short bone series", lambda: stack(TWENTY, ConvolutionKernel="FC08")
         | stack(range(5, 12), 1, "t", SeriesInstanceUID=OTHER, ConvolutionKernel="FC30"),
         hounsfield(TWENTY), {"other-series": 7}),
    Case("equal series: the lower number", lambda: stack(TWENTY, SeriesNumber=2)
         | stack(TWENTY, 1, "t", SeriesInstanceUID="1.2.3.4.1", SeriesNumber=3),
         hounsfield(TWENTY), {"other-series": 20}),
    Case("two stations that touch", lambda: stack(TWENTY, AcquisitionNumber=1)
         | stack(range(20, 40), 0, "t", 21, AcquisitionNumber=2), hounsfield(range(40)), {}),
    Case("two stations with other kernels", lambda: stack(TWENTY, ConvolutionKernel="BONE")
         | stack(range(20, 40), 0, "t", 21, ConvolutionKernel="SOFT"), hounsfield(range(40)), {}),
    Case("two stations that share three positions", lambda: stack(TWENTY, AcquisitionNumber=1)
         | stack(range(17, 30), 1, "t", 21, AcquisitionNumber=2),
         np.concatenate([hounsfield(TWENTY), hounsfield(range(20, 30), 1)]), {"overlap": 3}),
    Case("two stations that share positions out of step", lambda: stack(
         TWENTY, AcquisitionNumber=1)
         | stack([z + 0.5 for z in range(17, 30)], 1, "t", 21, AcquisitionNumber=2),
         np.concatenate([hounsfield(TWENTY), hounsfield([z + 0.5 for z in range(19, 30)], 1)]),
         {"overlap": 2}),
    Case("an acquisition a rotation", lambda: {
        f"s{z}.dcm": one_slice(z, AcquisitionNumber=z // 4 + 1) for z in range(24)},
        hounsfield(range(24)), {}),
    Case("an acquisition a slice", lambda: {
        f"s{z}.dcm": one_slice(z, AcquisitionNumber=z + 1) for z in TWENTY},
        hounsfield(TWENTY), {}),
    Case("acquisitions that number rotations, in two phases", lambda: {
        f"s{z}.dcm": one_slice(z, AcquisitionNumber=z // 4 + 1) for z in TWENTY} | {
        f"t{z}.dcm": one_slice(z, 1, 100 + z, AcquisitionNumber=z // 4 + 11)
        for z in range(4, 16)}, hounsfield(TWENTY), {"other-set": 12}),
    Case("an acquisition number that is noise", lambda: {
        f"s{z}.dcm": one_slice(z, AcquisitionNumber=[7, 3, 9, 3, 7][z * z % 5]) for z in TWENTY},
        hounsfield(TWENTY), {}),
    Case("a slice of another acquisition in a hole", lambda: {
        f"s{z}.dcm": one_slice(z, AcquisitionNumber=2 if z == 9 else 1) for z in TWENTY},
        hounsfield(TWENTY), {}),
    Case("phases that only InstanceNumber tells apart", lambda: stack(TWENTY)
         | stack(range(3, 15), 1, "t", 101), hounsfield(TWENTY), {"other-set": 12}),
    Case("a grid half a step off that only InstanceNumber tells apart", lambda: stack(TWENTY)
         | stack([z + 0.5 for z in range(2, 17)], 1, "t", 101), hounsfield(TWENTY),
         {"other-set": 15}),
    Case("spacing that is rounded in every second slice", lambda: {
        f"s{z}.dcm": one_slice(z, PixelSpacing=[[0.48828125] * 2, [0.488] * 2][z % 2])
        for z in TWENTY}, hounsfield(TWENTY), {}),
    Case("spacing with two decimals in some slices", lambda: {
        f"s{z}.dcm": one_slice(z, PixelSpacing=[[0.390625] * 2, [0.39] * 2][z % 3 == 0])
        for z in TWENTY}, hounsfield(TWENTY), {}),
    Case("orientation that is rounded in every second slice", lambda: {
        f"s{z}.dcm": one_slice(z, ImageOrientationPatient=[
            [1, 0, 0, 0, 0.9483237, -0.3173047], [1, 0, 0, 0, 0.95, -0.32]][z % 2])
        for z in TWENTY}, hounsfield(TWENTY), {}),
    Case("the same objects twice", beside({f"copy {k}": v for k, v in GOOD.items()}),
         hounsfield(TWENTY), {"copy": 20}),
    Case("the same pixels in another coding", beside({
        f"c{z}.dcm": made_dicom.make_object(
            words(z), "1.2.840.10008.1.2.4.80", ImagePositionPatient=[0, 0, z],
            InstanceNumber=z + 1, SOPInstanceUID=f"{made_dicom.SERIES}.1.{z + 1}", BitsStored=12)
        for z in TWENTY}), hounsfield(TWENTY), {"copy": 20}),
    Case("a truncated slice of another series", beside({
        "bad.dcm": one_slice(3, 1, SeriesInstanceUID=OTHER)[:-9]}), hounsfield(TWENTY),
        {"other-series": 1}),
    Case("slices of another series without a rescale", beside({
        f"o{z}.dcm": one_slice(z, 1, SeriesInstanceUID=OTHER, ImageType=["DERIVED", "SECONDARY"],
        RescaleSlope=None) for z in TWENTY}), hounsfield(TWENTY), {"other-series": 20}),
]  # fmt: skip


def counts(volume: StudyVolume) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in volume.unused:
        found[entry.kind] = found.get(entry.kind, 0) + 1
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("backwards", [False, True])
def test_one_scan_is_read_and_nothing_is_refused(case: Case, backwards: bool) -> None:
    objects = list(case.objects().items())
    volume = read_volume(objects[::-1] if backwards else objects, threads=1)
    np.testing.assert_array_equal(volume.hu, case.expected)
    assert not volume.refused
    assert counts(volume) == case.unused


REFUSED: list[tuple[str, str, Callable[[], Objects]]] = [
    ("two phases whose headers are equal", "acquisitions-mixed", lambda: GOOD | {
        f"t{z}.dcm": made_dicom.make_object(
            words(z, 1), ImagePositionPatient=[0, 0, z], InstanceNumber=z + 1, BitsStored=12,
            SOPInstanceUID=f"{made_dicom.SERIES}.1.{z + 1}") for z in TWENTY}),
    ("two phases numbered in turn", "acquisitions-mixed", lambda: {
        f"{p}{z}.dcm": one_slice(z, p, 2 * z + p) for z in TWENTY for p in (0, 1)}),
    ("two phases without a number", "acquisitions-mixed", lambda: {
        f"{p}{z}.dcm": one_slice(z, p, z + 1) for z in TWENTY for p in (0, 1)}),
    (
        "two phases in one object without a field between them",
        "acquisitions-mixed",
        lambda: {
            "e": made_dicom.make_enhanced(
                np.stack([words(z, p) for p in (0, 1) for z in TWENTY]),
                [[0, 0, z] for _ in (0, 1) for z in TWENTY],
                BitsStored=12,
            )
        },
    ),
    ("scouts alone", "no-axial-stack", lambda: AXIAL_SCOUTS),
    ("sagittal slices alone", "no-axial-stack", lambda: turned([0, 1, 0, 0, 0, -1], 0)),
    ("MIPs alone", "no-axial-stack", lambda: typed(["DERIVED", "SECONDARY", "MIP"])),
    ("one position", "one-position", lambda: TRACKING),
    ("one slice", "one-position", lambda: {"a.dcm": one_slice(0)}),
    ("headers without a position", "headers-refused", lambda: {
        f"s{z}.dcm": one_slice(z, ImagePositionPatient=None) for z in TWENTY}),
    ("nothing that can be decoded", "nothing-decoded", lambda: {
        f"s{z}.dcm": one_slice(z)[:-9] for z in TWENTY}),
    ("MR alone", "no-ct", lambda: stack(TWENTY, SOPClassUID="1.2.840.10008.5.1.4.1.1.4")),
    ("gzip alone", "no-dicom", lambda: {f"s{z}.dcm.gz": b"\x1f\x8b\x08" for z in TWENTY}),
    ("no object", "no-dicom", dict),
    ("an original series that cannot be read beside a MPR", "series-refused", lambda: {
        f"s{z}.dcm": one_slice(z, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], RescaleSlope=None)
        for z in TWENTY} | typed(["DERIVED", "SECONDARY", "MPR"])),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "objects"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_study_without_a_volume_has_one_reason_a_state(
    kind: str, objects: Callable[[], Objects]
) -> None:
    made = objects()
    with pytest.raises(NoVolumeError) as caught:
        read_volume(made.items(), threads=1)
    assert caught.value.kind == kind
    told = {e.key for e in caught.value.refused} | {e.key for e in caught.value.unused}
    assert told == set(made)


@pytest.mark.parametrize(
    ("pattern", "seed"),
    [("", 0), (OTHER, 1), ("12", 1), ("soft", 1), ("B30", 1), ("^neck", 0), (made_dicom.SERIES, 0)],
)
def test_the_user_may_name_the_series(pattern: str, seed: int) -> None:
    objects = stack(TWENTY, SeriesDescription="Neck bone", ConvolutionKernel="B70", SeriesNumber=2)
    objects |= stack(
        TWENTY, 1, "t", SeriesInstanceUID=OTHER, SeriesDescription="Neck Soft",
        ConvolutionKernel="B30", SeriesNumber=12,
    )  # fmt: skip
    if pattern == "^neck":
        objects |= stack(range(60), 2, "h", SeriesInstanceUID="1.2.9", SeriesDescription="Head")
    volume = read_volume(objects.items(), threads=1, rule=SeriesRule(pattern))
    np.testing.assert_array_equal(volume.hu, hounsfield(TWENTY, seed))


def test_a_series_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(NoVolumeError, match=made_dicom.SERIES) as caught:
        read_volume(GOOD.items(), threads=1, rule=SeriesRule("lung"))
    assert caught.value.kind == "series-not-found"


def test_a_mask_says_which_of_two_unnamed_series_is_the_neck() -> None:
    objects = GOOD | stack(range(100, 160), 1, "h", SeriesInstanceUID=OTHER)
    corners = np.asarray([[x, y, z] for x in (0, 3) for y in (0, 3) for z in (2.0, 17.0)])
    volume = read_volume(objects.items(), threads=1, rule=SeriesRule(focus=corners))
    np.testing.assert_array_equal(volume.hu, hounsfield(TWENTY))
    assert len(read_volume(objects.items(), threads=1).hu) == 60


def test_slices_of_the_series_that_fall_out_of_the_stack_are_refused() -> None:
    objects = GOOD | stack(range(20, 30), 1, "t", 21, PixelSpacing=[0.7, 0.7])
    volume = read_volume(objects.items(), threads=1)
    assert [error.kind for error in volume.refused] == ["not-in-stack"] * 10


def test_reasons_say_why_a_series_was_chosen_and_why_the_others_were_not() -> None:
    objects = stack(TWENTY, ConvolutionKernel="BONE") | typed(["DERIVED", "SECONDARY", "MPR"])
    objects |= stack(TWENTY, 1, "t", SeriesInstanceUID="1.2.3.4.1", ConvolutionKernel="SOFT")
    parts = read_volume(objects.items(), threads=1).parts
    reasons = {part.series: part.reason for part in parts}
    assert [part.series for part in parts if part.chosen] == [made_dicom.SERIES]
    assert reasons[OTHER] == "reformat, not original"
    assert reasons["1.2.3.4.1"] == "kernel soft"
    assert reasons[made_dicom.SERIES] == "others: kernel soft"
