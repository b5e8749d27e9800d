"""Draw pictures of a study: cuts through the overview, and the slices of each crop.

Images are grey JPEG files as data URLs, and boxes are coordinates that the page draws as SVG, so a
picture takes a few kilobytes. Not here: which studies are shown (`pipeline.report.gallery`), plots
of numbers (`pipeline.report.plots`).
"""

import io
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from presentation.pages import data_url
from storage_schemas.crops import Crop
from storage_schemas.records import CROPPED, StudyRecord
from storage_schemas.store import StudyStore

WINDOWS = {"bone": (500.0, 1800.0), "soft tissue": (50.0, 400.0)}
"""Level and width of the display windows in HU; usual ones for the cervical spine."""
GREYS = ((-1024, 0), (-300, 24), (400, 184), (2000, 255))
"""Knots (HU, grey level) of the piecewise linear map that stores HU in 256 grey levels.

The page applies a window to these grey levels. A grey level is about 4 HU wide for soft tissue, and
wider where the windows need less resolution.
"""
THUMBNAIL, SIDE, SLICES = 112, 176, 24
"""Maximum side of a thumbnail and of a slice in pixels, and maximum number of slices per crop."""
_BLOCK = 8
# A window magnifies compression errors up to four times.
_STRIP_QUALITY = 88
# Seven colours that colour-blind readers can tell apart (after Okabe and Ito, 2008), on black.
COLOURS = ("#e69f00", "#56b4e9", "#2fbf95", "#f0e442", "#ff7a3d", "#cc79a7", "#ffffff")


@dataclass(frozen=True)
class Box:
    """Box of a crop on a cut.

    Parameters
    ----------
    level, colour : str
        Vertebral level, and the CSS colour of its box.
    x, y, width, height : float
        Rectangle in mm; the origin is the upper left corner of the picture.
    """

    level: str
    colour: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Cut:
    """One cut through the overview.

    Parameters
    ----------
    name : str
        ``sagittal`` (the face looks to the left) or ``coronal`` (the patient's right is on the
        left); the head is on top.
    image : str
        Data URL of the picture.
    width, height : float
        Size of the picture in mm.
    boxes : tuple of Box
        Boxes of the crops, from head to feet.
    """

    name: str
    image: str
    width: float
    height: float
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class SliceStrip:
    """The slices of a crop stacked vertically in one image, in the grey levels of `GREYS`.

    Parameters
    ----------
    image : str
        Data URL of the image.
    outline : str or None
        Data URL of the mask's outline on the same pixels; None without a mask.
    columns, rows : int
        Size of a slice in pixels; pixels are square in mm.
    stride : int
        Number of rows from one slice to the next.
    shown : tuple of int
        Indices of these slices in the crop, ascending from feet to head.
    """

    image: str
    outline: str | None
    columns: int
    rows: int
    stride: int
    shown: tuple[int, ...]


@dataclass(frozen=True)
class CropPicture:
    """Picture of one crop.

    Parameters
    ----------
    level, colour : str
        Vertebral level, and the CSS colour of its box.
    slices : int
        Number of slices of the crop.
    middle : int
        Index of the slice with the largest mask area.
    thumbnail : str
        Data URL of the middle slice in the bone window.
    strip : SliceStrip or None
        Slices to scroll through; None where they were not requested.
    """

    level: str
    colour: str
    slices: int
    middle: int
    thumbnail: str
    strip: SliceStrip | None


def cut_overview(
    cube: NDArray[np.int16], affine: NDArray[np.float64], record: StudyRecord
) -> tuple[Cut, Cut]:
    """Draw a sagittal and a coronal cut of an overview through the vertebral bodies.

    Parameters
    ----------
    cube : ndarray, shape (z, y, x), int16, HU
        Overview of the study.
    affine : ndarray, shape (4, 4)
        Matrix from homogeneous (z, y, x) indices of the cube to LPS mm.
    record : StudyRecord
        Record of the study, which has the boxes of the crops.

    Returns
    -------
    tuple of Cut
        The sagittal and the coronal cut.
    """
    boxes = _boxes_in_cube(record, affine)
    middle = np.array(cube.shape) // 2
    if boxes:
        # The midline, at the height of the bodies, which fill the front of the boxes.
        share = np.array([0.5, 0.3, 0.5])
        middle = np.mean([low + share * (high - low) for _, low, high in boxes], axis=0).astype(int)
        middle = middle.clip(0, np.array(cube.shape) - 1)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return (
        _cut("sagittal", cube[:, :, middle[2]], 1, boxes, spacing),
        _cut("coronal", cube[:, middle[1], :], 2, boxes, spacing),
    )


def _cut(
    name: str,
    image: NDArray[np.int16],
    across: int,
    boxes: list[tuple[str, NDArray[np.float64], NDArray[np.float64]]],
    spacing: NDArray[np.float64],
) -> Cut:
    height = image.shape[0] * float(spacing[0])
    drawn = []
    for (level, low, high), colour in zip(boxes, cycle(COLOURS), strict=False):
        # Voxel k reaches from k - 1/2 to k + 1/2, and z runs upwards.
        x, top = (low[across] + 0.5) * spacing[across], height - (high[0] + 0.5) * spacing[0]
        size = (high - low) * spacing
        rectangle = (round(float(v), 1) for v in (x, top, size[across], size[0]))
        drawn.append(Box(level, colour, *rectangle))
    picture = Image.fromarray(_windowed(image[::-1].astype(np.float32)))
    return Cut(name, _jpeg(picture), image.shape[1] * float(spacing[across]), height, tuple(drawn))


def draw_crops(
    store: StudyStore, record: StudyRecord, *, strips: bool = False
) -> tuple[CropPicture, ...]:
    """Draw each crop of a study.

    Parameters
    ----------
    store : StudyStore
        Store that holds the study.
    record : StudyRecord
        Record of the study.
    strips : bool
        Whether to draw the slices of each crop as well.

    Raises
    ------
    StoreError
        ``array-missing``, ``array-damaged`` and others where a crop cannot be read.
    """
    levels = [vertebra.level for vertebra in record.vertebrae if vertebra.outcome == CROPPED]
    return tuple(
        _draw_crop(level, colour, store.read_crop(record.study, level), SLICES if strips else 0)
        for level, colour in zip(levels, cycle(COLOURS), strict=False)
    )


def _draw_crop(level: str, colour: str, crop: Crop, slices: int) -> CropPicture:
    count, rows, columns = crop.hu.shape
    height, width = (
        n * mm for n, mm in zip((rows, columns), crop.geometry.pixel_spacing, strict=True)
    )
    middle = count // 2
    if crop.mask is not None:
        middle = int(crop.mask.sum((1, 2), dtype=np.int64).argmax())
    scale = THUMBNAIL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(crop.hu[middle].astype(np.float32)).resize(size, Image.Resampling.BOX)
    return CropPicture(
        level=level,
        colour=colour,
        slices=count,
        middle=middle,
        thumbnail=_jpeg(Image.fromarray(_windowed(np.asarray(small)))),
        strip=_strip(crop, (height, width), slices) if slices else None,
    )


def _strip(crop: Crop, size_mm: tuple[float, float], slices: int) -> SliceStrip:
    shown = np.unique(np.linspace(0, len(crop.hu) - 1, min(len(crop.hu), slices)).astype(int))
    # Square pixels, at least as large as the stored ones.
    pixel = max(max(size_mm) / SIDE, *crop.geometry.pixel_spacing)
    rows, columns = (max(1, round(mm / pixel)) for mm in size_mm)
    # A multiple of the JPEG block size, so that compression does not mix slices.
    stride = -(-rows // _BLOCK) * _BLOCK
    below = ((0, stride - rows), (0, 0))
    greys = [np.pad(_grey(_resized(crop.hu[z], rows, columns)), below, "edge") for z in shown]
    outline = None
    if crop.mask is not None:
        inside = [_resized(crop.mask[z], rows, columns) > 0.5 for z in shown]
        lines = [np.pad(mask & ~ndimage.binary_erosion(mask), below) for mask in inside]
        outline = data_url(_file(Image.fromarray(np.concatenate(lines)), "png"), "png")
    return SliceStrip(
        image=_jpeg(Image.fromarray(np.concatenate(greys)), _STRIP_QUALITY),
        outline=outline,
        columns=columns,
        rows=rows,
        stride=stride,
        shown=tuple(int(z) for z in shown),
    )


def _resized(
    image: NDArray[np.int16] | NDArray[np.uint8], rows: int, columns: int
) -> NDArray[np.float32]:
    picture = Image.fromarray(image.astype(np.float32))
    return np.asarray(picture.resize((columns, rows), Image.Resampling.BOX), np.float32)


def _boxes_in_cube(
    record: StudyRecord, affine: NDArray[np.float64]
) -> list[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Level of each crop, and its minimum and maximum (z, y, x) in the cube."""
    if record.volume is None:
        return []
    inverse = np.linalg.inv(affine)
    boxes = []
    for vertebra in record.vertebrae:
        if vertebra.box is None:
            continue
        z0, z1, y0, y1, x0, x1 = vertebra.box
        corners = [(z, y, x) for z in (z0, z1 - 1) for y in (y0, y1 - 1) for x in (x0, x1 - 1)]
        points = record.volume.geometry.to_lps(corners) @ inverse[:3, :3].T + inverse[:3, 3]
        boxes.append((vertebra.level, points.min(0), points.max(0)))
    return boxes


def _windowed(hu: NDArray[np.float32]) -> NDArray[np.uint8]:
    level, width = WINDOWS["bone"]
    return (((hu - (level - width / 2)) / width).clip(0, 1) * 255).round().astype(np.uint8)


def _grey(hu: NDArray[np.float32]) -> NDArray[np.uint8]:
    values, greys = zip(*GREYS, strict=True)
    return np.interp(hu, values, greys).round().astype(np.uint8)


def _jpeg(picture: Image.Image, quality: int = 80) -> str:
    return data_url(_file(picture, "jpeg", quality=quality), "jpeg")


def _file(picture: Image.Image, form: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, optimize=True, **settings)
    return buffer.getvalue()
