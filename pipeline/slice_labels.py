"""What each slice of a crop shows of its vertebra's fracture, by the study's labels and boxes.

A label says that a vertebra is fractured, and a box in which slice, and where, a fracture is seen;
no box names a level. A slice is 1 where a box lies on its vertebra, and 0 only where that is known:
where the vertebra is intact, or has boxes, all of which are accounted for, and none here. Whatever
else a box may mean is unknown, and reported. Not here: the tables' other columns
(`pipeline.tables`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipeline.dicom.stack import Orientation
from storage_schemas.annotations import FractureBox
from storage_schemas.records import CROPPED, STORED, StudyRecord, StudyVolumeRecord, Vertebra

BOX_UNPLACED = "box-unplaced"
"""The kind under which a box that lies on no vertebra stands in the table ``quarantine``."""


@dataclass(frozen=True)
class UnplacedBox:
    """A box that is on no vertebra.

    Parameters
    ----------
    key : str
        Key of its slice's object, or its slice number where there is no such slice.
    reason : str
        Why, in one line.
    """

    key: str
    reason: str


@dataclass
class PlacedBoxes:
    """The boxes of a study on its vertebrae.

    Parameters
    ----------
    of : dict of (str, int) to list of FractureBox
        For each level and slice of the volume (z) the boxes there, in pixels of the volume.
    levels : set of str
        Levels that have a box in some slice.
    doubtful : set of int
        Slices (z) with a box that is on no vertebra.
    lost : bool
        Whether a box is in a slice that nobody knows, so that it may be any.
    unplaced : list of UnplacedBox
    """

    of: dict[tuple[str, int], list[FractureBox]] = field(default_factory=dict)
    levels: set[str] = field(default_factory=set)
    doubtful: set[int] = field(default_factory=set)
    lost: bool = False
    unplaced: list[UnplacedBox] = field(default_factory=list)

    def label(self, level: str, z: int, fractured: int | None) -> int | None:
        """Return whether a slice shows its vertebra's fracture; None where that is unknown.

        Parameters
        ----------
        level : str
            The vertebra.
        z : int
            The slice in the volume.
        fractured : int or None
            The vertebra's own label.
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
    """Put the boxes of a study on its vertebrae.

    Parameters
    ----------
    record : StudyRecord
        A committed study.
    labels : mapping
        Its labels by level; None or absent where unknown.
    boxes : sequence of FractureBox
        In pixels of the stored images.

    Returns
    -------
    PlacedBoxes
        Each box is on one fractured vertebra, in one whose label is unknown, or unplaced. A box
        that fits several fractured vertebrae belongs to the one whose middle is nearest along z.
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
    """Slices by the competition's slice number, which is that of the file's name.

    Where no file is so named, it is the instance number: those are equal in the competition's set,
    and where keys are hashed only the latter is left. A number that several slices have finds none.
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
    """A box in pixels of the canonical volume."""
    orientation = Orientation(volume.transposed, volume.flipped)
    rows, columns = volume.geometry.shape[1:]
    stored_shape = (columns, rows) if volume.transposed else (rows, columns)
    given = (box.x, box.y, box.width, box.height)
    x, y, width, height = orientation.map_rectangle(given, stored_shape)
    return FractureBox(x, y, width, height, box.slice_number)


def _owner(box: FractureBox, vertebrae: Sequence[Vertebra], z: int) -> str | None:
    """Of the vertebrae whose extent holds the box's centre, the one whose middle is nearest."""
    x, y = box.x + box.width / 2, box.y + box.height / 2
    around = []
    for vertebra in vertebrae:
        assert vertebra.extent is not None
        z0, z1, y0, y1, x0, x1 = vertebra.extent
        if z0 <= z < z1 and y0 <= y <= y1 and x0 <= x <= x1:
            around.append((abs(z - (z0 + z1 - 1) / 2), vertebra.level))
    return min(around)[1] if around else None
