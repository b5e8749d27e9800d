"""Pictures of studies for people: the overview with its boxes, and the crops side by side."""

import base64
import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from storage_schemas.records import CROPPED, StudyRecord
from storage_schemas.store import StudyStore

BONE_WINDOW = (500.0, 1800.0)
"""Level and width in HU; a usual window for the cervical spine."""
_DPI = 100
# Seven colours that stay apart for colour-blind readers (Okabe and Ito, 2008).
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#4C9BE8", "#D55E00", "#CC79A7")


def draw_overview(store: StudyStore, record: StudyRecord) -> str:
    """Sagittal and coronal cuts through the overview with the crops' boxes, as a data URL."""
    cube, affine = store.read_overview(record.study)
    boxes = _boxes_in_cube(record, affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    middle = np.array(cube.shape) // 2
    if boxes:
        # Through the bodies, which fill the front of the boxes, and the midline.
        into = np.array([0.5, 0.3, 0.5])
        middle = np.mean([low + into * (high - low) for _, low, high in boxes], axis=0).astype(int)
    figure = Figure(figsize=(7.2, 4.2), facecolor="black")
    # Sagittal: the face looks to the left; coronal: the patient's right is on the left.
    cuts = (("sagittal", 1, cube[:, :, middle[2]]), ("coronal", 2, cube[:, middle[1], :]))
    for place, (title, across, image) in enumerate(cuts, start=1):
        axes = figure.add_subplot(1, 2, place)
        axes.imshow(
            _windowed(image),
            cmap="gray",
            vmin=0,
            vmax=1,
            origin="lower",
            aspect=float(spacing[0] / spacing[across]),
        )
        axes.set_title(title, color="white", fontsize=9)
        axes.axis("off")
        for number, (level, low, high) in enumerate(boxes):
            colour = _COLOURS[number % len(_COLOURS)]
            corner = (low[across], low[0])
            width, height = high[across] - low[across], high[0] - low[0]
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, lw=0.8))
            axes.text(high[across] + 1, (low[0] + high[0]) / 2, level, color=colour, fontsize=7)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.93, wspace=0.05)
    return _as_data_url(figure)


def draw_crops(store: StudyStore, record: StudyRecord) -> str | None:
    """The axial slice through the middle of each vertebra, as a data URL; None without crops."""
    levels = [vertebra for vertebra in record.vertebrae if vertebra.outcome == CROPPED]
    if not levels:
        return None
    figure = Figure(figsize=(1.35 * len(levels), 1.6), facecolor="black")
    for place, vertebra in enumerate(levels, start=1):
        crop = store.read_crop(record.study, vertebra.level)
        thickest = len(crop.hu) // 2
        if crop.mask is not None:
            thickest = int(crop.mask.sum((1, 2), dtype=np.int64).argmax())
        axes = figure.add_subplot(1, len(levels), place)
        aspect = crop.geometry.pixel_spacing[0] / crop.geometry.pixel_spacing[1]
        axes.imshow(_windowed(crop.hu[thickest]), cmap="gray", vmin=0, vmax=1, aspect=aspect)
        axes.set_title(vertebra.level, color="white", fontsize=8)
        axes.axis("off")
    figure.subplots_adjust(0.005, 0.01, 0.995, 0.86, wspace=0.03)
    return _as_data_url(figure)


def _boxes_in_cube(
    record: StudyRecord, affine: NDArray[np.float64]
) -> list[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Each crop's level and its least and greatest (z, y, x) in the cube."""
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


def _windowed(hu: NDArray[np.int16]) -> NDArray[np.float32]:
    level, width = BONE_WINDOW
    return ((hu.astype(np.float32) - (level - width / 2)) / width).clip(0, 1)


def _as_data_url(figure: Figure) -> str:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=_DPI, facecolor=figure.get_facecolor())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
