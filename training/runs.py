"""The run folder: the one place that training writes to.

::

    RUN/
      run.json                settings, the STORE's URL, the checkpoint that it started from
      splits.json             the patients of each side, written before anything is trained
      rounds.json             the patients of each round, likewise
      rounds.jsonl            one line a finished round: what it saw, and how the guard judges it
      metrics.jsonl           the training loss along the steps
      rounds/01/ ...          the model after each round, with its calibration.json
      model/                  the one that the run offers
      evaluation.json         written by evaluate, read by report
      examples/               pictures of test slices, likewise
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage_schemas.errors import UsageError

SETTINGS = "run.json"
SPLITS = "splits.json"
ROUNDS = "rounds.json"
HISTORY = "rounds.jsonl"
METRICS = "metrics.jsonl"
CALIBRATION = "calibration.json"
EVALUATION = "evaluation.json"
EXAMPLES = "examples"


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

    def create(self) -> None:
        """Make the folder; raises UsageError ``config-invalid`` where that cannot be."""
        try:
            (self.path / "rounds").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"the RUN folder cannot be made: {error.strerror}"
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
        """Write a document, whole or not at all."""
        path = self.path / name
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(document, indent=1) + "\n")
        partial.replace(path)

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Add a line to a journal, and see it on the disk."""
        with (self.path / name).open("ab") as stream:
            whole = (self.path / name).read_bytes().rfind(b"\n") + 1
            stream.truncate(whole)  # a line that a kill cut short would spoil this one
            stream.write(json.dumps(line).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a journal; a last line that a kill cut short is no line."""
        if not self.has(name):
            return []
        whole, _, _ = (self.path / name).read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]
