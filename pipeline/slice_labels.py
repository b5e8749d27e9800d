"""Derive the labels of slices from the labels and the bounding boxes of a study.

A label tells whether a vertebra is fractured; a box marks a fracture in a slice, without a level. A
slice is 1 if a box is on its vertebra. It is 0 only if the vertebra is intact, or if it has boxes,
all boxes of the study are assigned, and none is in this slice. Otherwise it is unknown, and the box
is reported. Not here: other columns of the tables (`pipeline.tables`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipeline.dicom.stack import Orientation
from storage_schemas.annotations import FractureBox
from storage_schemas.records import CROPPED, STORED, StudyRecord, StudyVolumeRecord, Vertebra

BOX_UNPLACED = "box-unplaced"
"""Kind of a box that is on no vertebra, in the table ``quarantine``."""


@dataclass(frozen=True)
class UnplacedBox:
    """A box that is on no vertebra.

    Parameters
    ----------
    key : str
        Key of the object of the slice, or the slice number if there is no such slice.
    reason : str
        Reason, one line.
    """

    key: str
    reason: str


@dataclass
class PlacedBoxes:
    """Boxes of a study, assigned to its vertebrae.

    Parameters
    ----------
    of : dict of (str, int) to list of FractureBox
        Boxes by level and slice of the volume (z), in pixels of the volume.
    levels : set of str
        Levels that have a box in some slice.
    doubtful : set of int
        Slices (z) with a box that is on no vertebra.
    lost : bool
        Whether the slice of a box is unknown, so that it may be any slice.
    unplaced : list of UnplacedBox
        Boxes that are on no vertebra.
    """

    of: dict[tuple[str, int], list[FractureBox]] = field(default_factory=dict)
    levels: set[str] = field(default_factory=set)
    doubtful: set[int] = field(default_factory=set)
    lost: bool = False
    unplaced: list[UnplacedBox] = field(default_factory=list)

    def label(self, level: str, z: int, fractured: int | None) -> int | None:
        """Return whether a slice shows the fracture of its vertebra; None if unknown.

        Parameters
        ----------
        level : str
            Level of the vertebra.
        z : int
            Index of the slice in the volume.
        fractured : int or None
            Label of the vertebra; None if unknown.
        """
        if fractured is None:
            return None
        if (level, z) in self.of:
            return 1
        if z in self.doubtful:
            return None
        if fractured and (self.lost or level not in self.levels):
            return None
        return 0


def place_boxes(
    record: StudyRecord, labels: Mapping[str, int | None], boxes: Sequence[FractureBox]
) -> PlacedBoxes:
    """Assign the boxes of a study to its vertebrae.

    Parameters
    ----------
    record : StudyRecord
        Record of a committed study.
    labels : mapping
        Labels of the study by level; None or absent if unknown.
    boxes : sequence of FractureBox
        Boxes in pixels of the stored images.

    Returns
    -------
    PlacedBoxes
        Each box is on a fractured vertebra, on one whose label is unknown, or unplaced. Of several
        fractured vertebrae, it is the one whose centre is nearest along z.
    """
    placed = PlacedBoxes()
    volume = record.volume
    if volume is None or not boxes:
        return placed
    crops = [vertebra for vertebra in record.vertebrae if vertebra.outcome == CROPPED]
    fractured = [crop for crop in crops if labels.get(crop.level)]
    unknown = [crop for crop in crops if labels.get(crop.level) is None]
    numbers = _SliceNumbers(volume)
    refused = {_name(entry.key) for entry in record.inputs if entry.outcome != STORED}
    for box in boxes:
        text = f"{box.width:g} x {box.height:g} pixels at x {box.x:g}, y {box.y:g}"
        z, reason = numbers.find(box.slice_number)
        if z is None:
            if str(box.slice_number) in refused:
                reason = "the slice is not stored"
            else:
                placed.lost = True
            key = str(box.slice_number)
            why = f"box of {text}: slice number {box.slice_number}: {reason}"
            placed.unplaced.append(UnplacedBox(key, why))
            continue
        here = _on_volume(box, volume)
        if owner := _owner(here, fractured, z):
            placed.of.setdefault((owner, z), []).append(here)
            placed.levels.add(owner)
        elif not _owner(here, unknown, z):
            placed.doubtful.add(z)
            intact = _owner(here, [crop for crop in crops if labels.get(crop.level) == 0], z)
            where = f"on {intact}, which is labelled intact" if intact else "on no vertebra"
            why = f"box of {text}: it lies {where}"
            placed.unplaced.append(UnplacedBox(volume.slices[z].key, why))
    return placed


class _SliceNumbers:
    """Slices by the competition's slice number, which is the name of the file.

    If no file has this name, it is the instance number: the two are equal in the competition's data
    set, and only the latter is known if keys are hashed. A number of several slices finds none.
    """

    def __init__(self, volume: StudyVolumeRecord) -> None:
        self._by_name: dict[str, list[int]] = {}
        self._by_instance: dict[str, list[int]] = {}
        for z, origin in enumerate(volume.slices):
            self._by_name.setdefault(_name(origin.key), []).append(z)
            self._by_instance.setdefault(str(origin.instance_number), []).append(z)

    def find(self, number: int) -> tuple[int | None, str]:
        """Return z, or None and the reason."""
        found = self._by_name.get(str(number)) or self._by_instance.get(str(number)) or []
        if len(found) == 1:
            return found[0], ""
        return None, f"{len(found)} slices have it" if found else "no slice has it"


def _name(key: str) -> str:
    return PurePosixPath(key).stem


def _on_volume(box: FractureBox, volume: StudyVolumeRecord) -> FractureBox:
    """Convert a box to pixels of the canonical volume."""
    orientation = Orientation(volume.transposed, volume.flipped)
    rows, columns = volume.geometry.shape[1:]
    stored_shape = (columns, rows) if volume.transposed else (rows, columns)
    given = (box.x, box.y, box.width, box.height)
    x, y, width, height = orientation.map_rectangle(given, stored_shape)
    return FractureBox(x, y, width, height, box.slice_number)


def _owner(box: FractureBox, vertebrae: Sequence[Vertebra], z: int) -> str | None:
    """Vertebra with the nearest centre along z, of those whose extent contains the box's centre."""
    x, y = box.x + box.width / 2, box.y + box.height / 2
    around = []
    for vertebra in vertebrae:
        assert vertebra.extent is not None
        z0, z1, y0, y1, x0, x1 = vertebra.extent
        if z0 <= z < z1 and y0 <= y <= y1 and x0 <= x <= x1:
            around.append((abs(z - (z0 + z1 - 1) / 2), vertebra.level))
    return min(around)[1] if around else None
