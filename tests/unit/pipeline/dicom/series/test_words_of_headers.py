"""What the words of a header say: how an image was made, how sharp it is, and what it shows."""

import pytest

from pipeline.dicom.series.image_type import Origin, find_origin
from pipeline.dicom.series.kernels import Sharpness, find_sharpness
from pipeline.dicom.series.regions import Region, find_region

SHARP, MEDIUM, SOFT = Sharpness.SHARP, Sharpness.MEDIUM, Sharpness.SOFT


@pytest.mark.parametrize(
    ("image_type", "origin"),
    [
        ("", Origin.ORIGINAL),
        ("ORIGINAL\\PRIMARY\\AXIAL", Origin.ORIGINAL),
        ("ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 SPI", Origin.ORIGINAL),
        ("ORIGINAL\\PRIMARY\\AXIAL\\HELIX", Origin.ORIGINAL),
        ("ORIGINAL\\PRIMARY\\VOLUME\\NONE", Origin.ORIGINAL),
        ("original\\primary\\axial ", Origin.ORIGINAL),
        ("DERIVED\\PRIMARY\\AXIAL", Origin.DERIVED),
        ("DERIVED\\SECONDARY", Origin.DERIVED),
        ("DERIVED\\SECONDARY\\MPR", Origin.REFORMAT),
        ("DERIVED\\SECONDARY\\REFORMATTED\\AVERAGE", Origin.REFORMAT),
        ("DERIVED\\SECONDARY\\AXIAL\\CSA MPR", Origin.REFORMAT),
        ("DERIVED\\PRIMARY\\VOLUME\\RESAMPLED", Origin.REFORMAT),
        ("DERIVED\\SECONDARY\\AXIAL\\CT_SOM5 MIP", Origin.PROJECTION),
        ("DERIVED\\SECONDARY\\MIN_IP", Origin.PROJECTION),
        ("DERIVED\\SECONDARY\\PROJECTION IMAGE\\VRT", Origin.PROJECTION),
        ("DERIVED\\PRIMARY\\VOLUME\\MAXIMUM", Origin.PROJECTION),
        ("ORIGINAL\\PRIMARY\\LOCALIZER", Origin.SCOUT),
        ("ORIGINAL\\PRIMARY\\LOCALIZER\\CT_SOM5 TOP", Origin.SCOUT),
        ("DERIVED\\SECONDARY\\SCREEN SAVE", Origin.PAGE),
        ("DERIVED\\SECONDARY\\OTHER\\CT_SOM5 PROT", Origin.PAGE),
        ("ORIGINAL\\PRIMARY\\AXIAL\\MONITORING", Origin.TRACKING),
    ],
)
def test_an_image_type_says_how_the_image_was_made(image_type: str, origin: Origin) -> None:
    assert find_origin(image_type) is origin


def test_a_description_counts_only_where_the_image_type_says_nothing() -> None:
    assert find_origin("ORIGINAL\\PRIMARY\\AXIAL", "1.0 base for MPR") is Origin.ORIGINAL
    assert find_origin("ORIGINAL\\PRIMARY", "sag MPR") is Origin.REFORMAT
    assert find_origin("", "Dose Report") is Origin.REFORMAT
    assert find_origin("ORIGINAL\\PRIMARY\\AXIAL", "C-Spine MIP") is Origin.REFORMAT
    assert find_origin("ORIGINAL\\PRIMARY\\AXIAL", "0.6 for MIP") is Origin.ORIGINAL
    assert find_origin("ORIGINAL\\PRIMARY\\AXIAL", "C-Spine SAG") is Origin.ORIGINAL


@pytest.mark.parametrize(
    ("kernel", "sharpness"),
    [
        ("B70f", SHARP), ("B60s", SHARP), ("B50f", SHARP), ("B45f", MEDIUM), ("B30f", SOFT),
        ("B31s", SOFT), ("H70h", SHARP), ("Br64d\\3", SHARP), ("Br40d\\2", SOFT), ("Hr60h", SHARP),
        ("I70f\\3", SHARP), ("Bv49", MEDIUM), ("Qr40", SOFT),
        ("BONE", SHARP), ("BONEPLUS", SHARP), ("BONE+", SHARP), ("HD BONE", SHARP),
        ("EDGE", SHARP), ("DETAIL", MEDIUM), ("STANDARD", SOFT), ("STD+", SOFT), ("SOFT", SOFT),
        ("D", SHARP), ("YD", SHARP), ("YC", SHARP), ("C", MEDIUM), ("B", SOFT), ("YA", SOFT),
        ("FC30", SHARP), ("FC81", SHARP), ("FC08", SOFT), ("FC13-H", SOFT), ("FC21", SOFT),
        ("", Sharpness.UNKNOWN), ("whatever", Sharpness.UNKNOWN), (" bone ", SHARP),
    ],
)  # fmt: skip
def test_a_kernel_is_as_sharp_as_its_vendor_says(kernel: str, sharpness: Sharpness) -> None:
    assert find_sharpness(kernel) is sharpness


@pytest.mark.parametrize(
    ("texts", "region"),
    [
        (("C-Spine 1.0 bone", "TRAUMA HEAD", "HEAD"), Region.NECK),
        (("Head 5.0", "HEAD AND NECK", "CSPINE"), Region.OTHER),
        (("", "", "CSPINE"), Region.NECK),
        (("", "", "NECK"), Region.NECK),
        (("cervical", "", ""), Region.NECK),
        (("HWS nativ", "", "SPINE"), Region.NECK),
        (("", "Head_CSpine", "HEAD"), Region.OTHER),
        (("", "Head_CSpine", ""), Region.UNKNOWN),
        (("", "", "SPINE"), Region.UNKNOWN),
        (("", "", "TSPINE"), Region.OTHER),
        (("", "", "LSPINE"), Region.OTHER),
        (("L-Spine", "", ""), Region.OTHER),
        (("", "Thorax", ""), Region.OTHER),
        (("", "", ""), Region.UNKNOWN),
    ],
)
def test_the_first_text_that_names_one_region_decides(
    texts: tuple[str, ...], region: Region
) -> None:
    assert find_region(*texts) is region
