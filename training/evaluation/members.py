"""The models that a run predicts with: one in a plain run, several in an ensemble.

The file ``blend.json`` of an ensemble lists each member's folder, relative to the run, and its
weight. A member is a saved model with its calibration.
"""

from dataclasses import dataclass
from pathlib import Path

from storage_schemas.errors import UsageError
from training.metrics.calibration import Calibration
from training.runs import CALIBRATION, RUN_ENSEMBLE, RunFolder


@dataclass(frozen=True)
class Member:
    """One model of an ensemble.

    Parameters
    ----------
    folder : Path
        Folder written by `training.models.slice_model.save_model`, with a ``calibration.json``.
    weight : float
        Weight of the model in the ensemble.
    """

    folder: Path
    weight: float

    def calibration(self) -> Calibration:
        """Read the member's calibration; raises UsageError ``config-invalid`` if there is none."""
        return read_calibration(self.folder)


def read_members(run: RunFolder) -> tuple[Member, ...]:
    """Return the members of a run, by descending weight.

    Raises
    ------
    UsageError
        ``config-invalid`` if the folder holds neither a finished run nor an ensemble.
    """
    if not run.has(RUN_ENSEMBLE):
        return (Member(run.model, 1.0),)
    try:
        members = [
            Member(_inside(run, entry["folder"]), float(entry["weight"]))
            for entry in run.read(RUN_ENSEMBLE)["members"]
        ]
        if abs(sum(member.weight for member in members) - 1) > 1e-6:
            raise ValueError("the member weights do not sum to 1")
    except (TypeError, KeyError, ValueError) as error:
        raise UsageError("config-invalid", f"{RUN_ENSEMBLE}: {error}", key=str(run.path)) from None
    return tuple(sorted(members, key=lambda member: -member.weight))


def _inside(run: RunFolder, place: str) -> Path:
    folder = (run.path / place).resolve()
    if not folder.is_relative_to(run.path.resolve()):
        raise ValueError(f"{place} is outside the folder")
    return folder


def read_calibration(folder: Path) -> Calibration:
    """Read the calibration in a model's folder.

    Raises
    ------
    UsageError
        ``config-invalid`` if there is none.
    """
    document = RunFolder(folder.parent).read(f"{folder.name}/{CALIBRATION}")
    try:
        return Calibration.from_json(document)
    except (TypeError, AttributeError) as error:
        raise UsageError("config-invalid", f"{CALIBRATION}: {error}", key=str(folder)) from None
