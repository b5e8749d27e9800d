"""The run folder: the one place that training writes to.

::

    RUN/
      run.json                settings, the STORE's URL, the checkpoint that it started from
      splits.json             the patients of each side, written before anything is trained
      rounds.json             the patients of each round, new and replayed, likewise
      rounds.jsonl            one line a finished round: what it saw, and what was decided
      metrics.jsonl           the training loss along the steps; tensorboard/ holds the same
      rounds/01/ ...          the model after each accepted round, with its calibration.json
      rounds/01.safetensors   the weights that it trained, where its model is a mixture with them:
                              the next round goes on from these, and then they are removed
      judged/01.json ...      what that model says of the calibration and the guard patients
      round.safetensors       the round that is being trained, from which a killed run goes on
      model/                  the one that the run offers
      stack.json              the mixture of rounds that is offered beside it
      evaluation.json         written by evaluate, read by report
      examples/               pictures of test slices, likewise
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage_schemas.errors import UsageError, reason_of
from training.durable import unwritable, write_text

SETTINGS = "run.json"
SPLITS = "splits.json"
ROUNDS = "rounds.json"
HISTORY = "rounds.jsonl"
METRICS = "metrics.jsonl"
CALIBRATION = "calibration.json"
EVALUATION = "evaluation.json"
EXAMPLES = "examples"
ROUND_ENSEMBLE = "stack.json"
RUN_ENSEMBLE = "blend.json"
FOLDS = "folds.json"
OUT_OF_FOLD = "out-of-fold.csv"
FEATURES = "features"
VOXELS = "voxels-"
"""How folders begin that hold a round's voxels while it is trained."""


@dataclass(frozen=True)
class RunFolder:
    """A run on a local disk.

    Parameters
    ----------
    path : Path
    """

    path: Path

    @property
    def model(self) -> Path:
        """Folder of the model that the run offers."""
        return self.path / "model"

    def round_model(self, number: int) -> Path:
        """Folder of the model after a round."""
        return self.path / "rounds" / f"{number:02}"

    def last_weights(self, number: int) -> Path:
        """The weights that a round trained, where they are not those of its model."""
        return self.path / "rounds" / f"{number:02}.safetensors"

    def drop_last_weights(self, keep: Path | None = None) -> None:
        """Remove those that no round goes on from."""
        for path in (self.path / "rounds").glob("*.safetensors*"):
            if path != keep:
                path.unlink(missing_ok=True)

    @property
    def checkpoint(self) -> Path:
        """The round that is being trained, half-way."""
        return self.path / "round.safetensors"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's events."""
        return self.path / "tensorboard"

    @staticmethod
    def validation_file(number: int) -> str:
        """Name of the document with what the model of a round says of the judges."""
        return f"judged/{number:02}.json"

    def create(self) -> None:
        """Make the folder, and remove what a killed run could not.

        Raises UsageError ``config-invalid`` where that cannot be.
        """
        try:
            for part in ("rounds", "judged"):
                (self.path / part).mkdir(parents=True, exist_ok=True)
            for left in self.path.glob(f"{VOXELS}*"):
                shutil.rmtree(left)
        except OSError as error:
            reason = f"the RUN folder cannot be made: {reason_of(error)}"
            raise UsageError("config-invalid", reason, key=str(self.path)) from None

    def has(self, name: str) -> bool:
        """Whether a document is there."""
        return (self.path / name).is_file()

    def read(self, name: str) -> Any:
        """Read a document; raises UsageError ``config-invalid`` where it is missing or damaged."""
        try:
            return json.loads((self.path / name).read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError("config-invalid", f"no {name} in RUN", key=str(self.path)) from None
        except ValueError as error:
            raise UsageError("config-invalid", f"{name}: {error}", key=str(self.path)) from None

    def write(self, name: str, document: Any) -> None:
        """Write a document, whole or not at all; raises RunError ``run-unwritable``."""
        write_text(self.path / name, json.dumps(document, indent=1) + "\n")

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Add a line to a journal, and see it on the disk."""
        with unwritable(self.path / name), (self.path / name).open("ab") as stream:
            complete = (self.path / name).read_bytes().rfind(b"\n") + 1
            stream.truncate(complete)  # a line that a kill cut short would spoil this one
            stream.write(json.dumps(line).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a journal; a last line that a kill cut short is no line."""
        if not self.has(name):
            return []
        complete, _, _ = (self.path / name).read_text().rpartition("\n")
        return [json.loads(line) for line in complete.splitlines()]
