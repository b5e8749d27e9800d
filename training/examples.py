"""Pictures of test slices for the report: what the model found, missed, and took for broken.

Each is the middle channel of the very input that had the largest logit of its vertebra.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import matplotlib.image
import numpy as np
from numpy.typing import NDArray

from storage_schemas.vertebrae import CERVICAL
from training.cohort import Study
from training.config import InputConfig
from training.inputs import gather_slices, make_pixels, plain_pose
from training.runs import EXAMPLES, RunFolder
from training.scoring import LevelScores
from training.shards import RoundShards

KINDS = ("found", "missed", "false alarm")
SHOWN = 6
"""Pictures of each kind."""


@dataclass(frozen=True)
class Example:
    """One picture.

    Parameters
    ----------
    kind : str
        From `KINDS`: broken and scored high, broken and scored low, whole and scored high.
    rank : float
        Pictures of the largest rank are shown.
    score : float
        Of its vertebra, in logits.
    level : str
    tile : ndarray, shape (size, size), uint8
    """

    kind: str
    rank: float
    score: float
    level: str
    tile: NDArray[np.uint8]


@dataclass
class ExampleTiles:
    """Collects pictures while studies are scored.

    Parameters
    ----------
    inputs : InputConfig
    """

    inputs: InputConfig
    examples: list[Example] = field(default_factory=list)

    def look(self, shards: RoundShards, studies: Sequence[Study], scores: LevelScores) -> None:
        """Take the best pictures of these studies, and keep the best of all."""
        rows = {study.study: row for row, study in enumerate(studies)}
        for crop, vertebra in enumerate(shards.vertebrae):
            place = rows[vertebra.study], CERVICAL.index(vertebra.level)
            score, peak = float(scores.score[place]), scores.peak[place]
            for kind in ("found", "missed") if vertebra.fractured else ("false alarm",):
                rank = -score if kind == "missed" else score
                tile = self._draw(shards, crop, int(peak))
                self.examples.append(Example(kind, rank, score, vertebra.level, tile))
        kept = []
        for kind in KINDS:
            mine = [example for example in self.examples if example.kind == kind]
            kept += sorted(mine, key=lambda example: -example.rank)[:SHOWN]
        self.examples = kept

    def _draw(self, shards: RoundShards, crop: int, z: int) -> NDArray[np.uint8]:
        batch = gather_slices(shards, np.array([crop]), np.array([z]))
        inputs = replace(self.inputs, neighbours=3, mask=False)  # one channel is all that is shown
        pixels = make_pixels(batch, inputs, plain_pose(1))[0, 1].numpy()
        return np.rint(255 * pixels).astype(np.uint8)

    def write(self, run: RunFolder) -> None:
        """Write the pictures and a list of them into the run folder, in place of older ones."""
        folder = run.path / EXAMPLES
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        listed = []
        for number, example in enumerate(self.examples):
            name = f"{number:02}.png"
            matplotlib.image.imsave(
                folder / name, example.tile, cmap="gray", vmin=0, vmax=255, format="png"
            )
            entry = {"kind": example.kind, "level": example.level, "score": example.score}
            listed.append(entry | {"file": name})
        run.write(f"{EXAMPLES}/examples.json", listed)
