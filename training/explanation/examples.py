"""Example cases for the report: true positives, false negatives and false positives of the test.

Each example is one vertebra, shown by its slice with the largest weight and a heat map. A heat map
shows the influence of image regions on the prediction, not the location of the fracture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel

from presentation.figures import png_of
from training.config import InputConfig
from training.data.cohort import Study
from training.data.crop_buffer import CropBuffer
from training.durable import write_folder
from training.explanation.attribution import KeySlice, attribute_study
from training.explanation.overlay import grey, shade
from training.models.slice_scoring import LevelScores
from training.runs import EXAMPLES, RunFolder

KINDS = ("found", "missed", "false alarm")
SHOWN = 6
"""Number of cases of each kind."""
LIST = f"{EXAMPLES}/examples.json"


@dataclass(frozen=True)
class Example:
    """One example case.

    Parameters
    ----------
    kind : str
        Entry of `KINDS`: ``found`` (true positive), ``missed`` (false negative) or ``false alarm``
        (false positive).
    rank : float
        Sort key; the cases with the largest values are shown.
    score : float
        Score of the vertebra, in logits.
    study : str
        Key of the study.
    level : str
        Name of the vertebra.
    key : KeySlice or None
        Slice with the largest weight; None until it is computed.
    """

    kind: str
    rank: float
    score: float
    study: str
    level: str
    key: KeySlice | None = None


@dataclass
class ExampleCases:
    """Collects example cases while studies are scored."""

    examples: list[Example] = field(default_factory=list)

    def observe(
        self,
        model: PreTrainedModel,
        inputs: InputConfig,
        buffer: CropBuffer,
        studies: Sequence[Study],
        scores: LevelScores,
    ) -> None:
        """Add the cases of some studies, keep the best of all, and compute their key slices."""
        rows = {study.study: row for row, study in enumerate(studies)}
        levels = buffer.targets.levels
        for vertebra in buffer.vertebrae:
            if vertebra.fractured is None:
                continue
            score = float(scores.score[rows[vertebra.study], levels.index(vertebra.level)])
            for kind in ("found", "missed") if vertebra.fractured else ("false alarm",):
                rank = -score if kind == "missed" else score
                self.examples.append(Example(kind, rank, score, vertebra.study, vertebra.level))
        self.examples = [
            example if example.key else _attribute(model, inputs, buffer, example)
            for kind in KINDS
            for example in sorted(
                (example for example in self.examples if example.kind == kind),
                key=lambda example: -example.rank,
            )[:SHOWN]
        ]

    def write(self, run: RunFolder) -> None:
        """Write the pictures and their list into the run folder, replacing earlier ones."""
        with write_folder(run.path / EXAMPLES) as folder:
            listed = []
            for number, example in enumerate(self.examples):
                names = ("kind", "study", "level", "score")
                entry = {name: getattr(example, name) for name in names}
                if example.key:
                    pictures = {"plain": grey(example.key.picture), "heat": shade(example.key)}
                    for name, picture in pictures.items():
                        entry[name] = f"{number:02}-{name}.png"
                        (folder / entry[name]).write_bytes(png_of(picture))
                listed.append(entry)
        run.write(LIST, listed)


def _attribute(
    model: PreTrainedModel, inputs: InputConfig, buffer: CropBuffer, example: Example
) -> Example:
    (attribution,) = attribute_study(model, inputs, buffer, example.study, [example.level])
    weights = dict(
        zip(
            attribution.slices,
            zip(attribution.weights, attribution.logits, strict=True),
            strict=True,
        )
    )
    return replace(example, key=max(attribution.keys, key=lambda key: weights[key.z]))
