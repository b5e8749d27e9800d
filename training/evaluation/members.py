"""The models that a run's probabilities are mixed from: one in a plain run, several in a blend.

A blend's ``blend.json`` names the members by their place in the folder and gives each its convex
weight; a member is a saved model with the calibration beside it.
"""

from dataclasses import dataclass
from pathlib import Path

from storage_schemas.errors import UsageError
from training.metrics.calibration import Calibration
from training.runs import CALIBRATION, RUN_ENSEMBLE, RunFolder


@dataclass(frozen=True)
class Member:
    """One model of a mixture.

    Parameters
    ----------
    folder : Path
        That `training.models.slice_model.save_model` wrote, with a ``calibration.json``.
    weight : float
        Its share of the mixture.
    """

    folder: Path
    weight: float

    def calibration(self) -> Calibration:
        """Read its calibration; raises UsageError ``config-invalid`` where there is none."""
        return read_calibration(self.folder)


def read_members(run: RunFolder) -> tuple[Member, ...]:
    """The members of a run, the heaviest first.

    Raises
    ------
    UsageError
        ``config-invalid`` where the folder holds neither a finished run nor a blend.
    """
    if not run.has(RUN_ENSEMBLE):
        return (Member(run.model, 1.0),)
    try:
        members = [
            Member(_inside(run, entry["folder"]), float(entry["weight"]))
            for entry in run.read(RUN_ENSEMBLE)["members"]
        ]
        if abs(sum(member.weight for member in members) - 1) > 1e-6:
            raise ValueError("the weights of its members do not sum to 1")
    except (TypeError, KeyError, ValueError) as error:
        raise UsageError("config-invalid", f"{RUN_ENSEMBLE}: {error}", key=str(run.path)) from None
    return tuple(sorted(members, key=lambda member: -member.weight))


def _inside(run: RunFolder, place: str) -> Path:
    folder = (run.path / place).resolve()
    if not folder.is_relative_to(run.path.resolve()):
        raise ValueError(f"{place} lies outside of the folder")
    return folder


def read_calibration(folder: Path) -> Calibration:
    """Read the calibration beside a model.

    Raises
    ------
    UsageError
        ``config-invalid`` where there is none.
    """
    document = RunFolder(folder.parent).read(f"{folder.name}/{CALIBRATION}")
    try:
        return Calibration.from_json(document)
    except (TypeError, AttributeError) as error:
        raise UsageError("config-invalid", f"{CALIBRATION}: {error}", key=str(folder)) from None
