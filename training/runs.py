"""The run folder, the only place that training writes to.

::

    RUN/
      run.json                settings, URL of the STORE, starting checkpoint
      splits.json             patients of each split; written before training starts
      rounds.json             new and replayed studies of each round, also written before training
      rounds.jsonl            journal: one line for each finished round, with its decision
      metrics.jsonl           training loss and learning rate by step; also in tensorboard/
      rounds/01/ ...          model of each accepted round, with its calibration.json
      rounds/01.safetensors   last-step weights of the round, if its accepted model was averaged or
                              interpolated; removed after the next round has started from them
      judged/01.json ...      calibration and validation probabilities of each accepted model
      round.safetensors       checkpoint of the round in progress, from which a killed run resumes
      model/                  the final model of the run
      stack.json              weights of the ensemble of accepted rounds
      evaluation.json         test-set evaluation, written by `evaluate`, read by `report`
      examples/               pictures of test slices, written by `evaluate`
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage_schemas.errors import UsageError, reason_of
from storage_schemas.targets import COMPETITION, Targets
from training.durable import unwritable, write_text

SETTINGS = "run.json"
TARGETS = "targets"
"""Name of the targets in `SETTINGS`; a run with those of the competition has none."""
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
"""Name prefix of the temporary folders that hold a round's voxels."""


@dataclass(frozen=True)
class RunFolder:
    """A run folder on a local disk.

    Parameters
    ----------
    path : Path
        Path of the folder, which need not exist yet.
    """

    path: Path

    @property
    def model(self) -> Path:
        """Folder of the run's final model."""
        return self.path / "model"

    def round_model(self, number: int) -> Path:
        """Folder of the model that was accepted in a round."""
        return self.path / "rounds" / f"{number:02}"

    def last_weights(self, number: int) -> Path:
        """File of the last-step weights of a round, if its accepted model differs from them."""
        return self.path / "rounds" / f"{number:02}.safetensors"

    def drop_last_weights(self, keep: Path | None = None) -> None:
        """Remove the last-step weights of all rounds, except the file `keep`."""
        for path in (self.path / "rounds").glob("*.safetensors*"):
            if path != keep:
                path.unlink(missing_ok=True)

    @property
    def checkpoint(self) -> Path:
        """Checkpoint file of the round in progress."""
        return self.path / "round.safetensors"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard event files."""
        return self.path / "tensorboard"

    @staticmethod
    def validation_file(number: int) -> str:
        """Name of the document with a round's validation result."""
        return f"judged/{number:02}.json"

    def create(self) -> None:
        """Create the folder and remove the temporary files of a killed run.

        Raises
        ------
        UsageError
            ``config-invalid`` if the folder cannot be created.
        """
        try:
            for part in ("rounds", "judged"):
                (self.path / part).mkdir(parents=True, exist_ok=True)
            for left in self.path.glob(f"{VOXELS}*"):
                shutil.rmtree(left)
        except OSError as error:
            reason = f"cannot create the RUN folder: {reason_of(error)}"
            raise UsageError("config-invalid", reason, key=str(self.path)) from None

    def has(self, name: str) -> bool:
        """Return whether a document exists."""
        return (self.path / name).is_file()

    def read(self, name: str) -> Any:
        """Read a JSON document.

        Raises
        ------
        UsageError
            ``config-invalid`` if it is missing or damaged.
        """
        try:
            return json.loads((self.path / name).read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError("config-invalid", f"no {name} in RUN", key=str(self.path)) from None
        except ValueError as error:
            raise UsageError("config-invalid", f"{name}: {error}", key=str(self.path)) from None

    def targets(self) -> Targets:
        """Return the targets of the run; the competition's where its settings name none.

        Raises
        ------
        UsageError
            ``config-invalid`` where the settings are missing or damaged.
        """
        document = self.read(SETTINGS).get(TARGETS)
        if document is None:
            return COMPETITION
        try:
            return Targets.from_json(document)
        except ValueError as error:
            reason = f"{SETTINGS}: targets: {error}"
            raise UsageError("config-invalid", reason, key=str(self.path)) from None

    def write(self, name: str, document: Any) -> None:
        """Write a JSON document atomically; raises RunError ``run-unwritable``."""
        write_text(self.path / name, json.dumps(document, indent=1) + "\n")

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Append a line to a journal and flush it to the disk."""
        with unwritable(self.path / name), (self.path / name).open("ab") as stream:
            complete = (self.path / name).read_bytes().rfind(b"\n") + 1
            stream.truncate(complete)  # remove a partial line that a killed process left
            stream.write(json.dumps(line).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Read the complete lines of a journal; a last line without a newline is skipped."""
        if not self.has(name):
            return []
        complete, _, _ = (self.path / name).read_text().rpartition("\n")
        return [json.loads(line) for line in complete.splitlines()]
