"""The recipes of CONTRIBUTING.md, followed to the letter: each is a table entry, and works."""

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from pipeline.cli import main as pipeline_main
from pipeline.dicom import decoders, syntaxes
from pipeline.dicom.codestreams import FrameForm
from pipeline.dicom.syntaxes import Syntax
from pipeline.dicom.volume import read_volume
from pipeline.vertebrae import locate
from pipeline.vertebrae.locate import Localization, LocatedVertebra
from storage_schemas.errors import StudyError
from storage_schemas.store import StudyStore
from tests import made_dicom
from tests.conftest import REPOSITORY
from tests.runs import SETTINGS, lines_of
from tests.studies import LEVELS, write_study
from training.cli import main
from training.models import families, kinds
from training.models.families import EncoderFamily
from training.models.slice_model import build_model, load_model
from training.rounds import recipes
from training.rounds.candidates import Decision, decide
from training.rounds.recipes import BOOST, Recipe

GUIDE = (REPOSITORY / "CONTRIBUTING.md").read_text()
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
"""Deflated Image Frame Compression (PS3.5 annex A): each frame is a raw deflate stream."""


@pytest.mark.parametrize(
    "name",
    [
        *("SYNTAXES", "LADDERS", "CODINGS", "FAMILIES", "RECIPES", "KINDS", "LOCATORS"),
        *("--targets", "--recipe NAME", "--set locate_by=NAME", "--set model.family=NAME"),
    ],
)
def test_the_guide_names_what_these_tests_add_to(name: str) -> None:
    assert f"`{name}`" in GUIDE


# ---- a transfer syntax ---------------------------------------------------------------------------


def inflate(piece: Any, frame: decoders.Frame, *_: Any) -> NDArray[Any]:
    size = frame.rows * frame.columns * frame.words.itemsize
    stream = zlib.decompressobj(wbits=-15)
    data = stream.decompress(bytes(piece), size)
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes, not {size}")
    return np.frombuffer(data, frame.words).reshape(frame.rows, frame.columns)


def test_a_transfer_syntax_is_an_entry_a_ladder_and_a_coding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = columns = 16
    volume = np.arange(4 * rows * columns, dtype=np.uint16).reshape(4, rows, columns)
    objects = made_dicom.make_stack(volume)
    expected = read_volume(made_dicom.name_objects(objects)).hu

    def compress(image: NDArray[Any], bits: int) -> bytes:
        deflate = zlib.compressobj(wbits=-15)
        return deflate.compress(image.astype("<u2").tobytes()) + deflate.flush()

    # pydicom writes no syntax that it does not know; a name of the same length stands in for it.
    stand_in = syntaxes.JPEG_LOSSLESS_SV1
    monkeypatch.setitem(made_dicom.ENCODERS, stand_in, compress)
    made = made_dicom.make_stack(volume, stand_in)
    name = DEFLATED_FRAMES.encode().ljust(len(stand_in), b"\0")
    compressed = made_dicom.name_objects([each.replace(stand_in.encode(), name) for each in made])
    with pytest.raises(StudyError):
        read_volume(compressed)

    monkeypatch.setitem(syntaxes.SYNTAXES, DEFLATED_FRAMES, Syntax("deflated", marked=False))
    monkeypatch.setitem(decoders.LADDERS, DEFLATED_FRAMES, {"zlib": inflate})
    monkeypatch.setitem(
        decoders.CODINGS, "deflated", lambda _, frame: FrameForm(frame.rows, frame.columns, 1, 0)
    )
    found = read_volume(compressed)
    assert np.array_equal(found.hu, expected)
    assert {origin.decoder for origin in found.slices} == {"zlib"}


# ---- a backbone, a recipe, a kind of model -------------------------------------------------------


def build_convnext(config: Any, inputs: Any, head: Any) -> PreTrainedModel:
    widths = [config.width // 2, config.width]
    return ConvNextForImageClassification(
        ConvNextConfig(
            patch_size=config.patch // 2,
            num_stages=2,
            hidden_sizes=widths,
            depths=[1, 1],
            image_size=inputs.size,
            **head,
        )
    )


def test_a_backbone_is_an_entry_in_the_table_of_families(
    phantom: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = phantom
    command = ["boost", str(store), str(tmp_path / "run"), *SETTINGS, "--rounds", "1"]
    command += ["--set", "model.family=convnext"]
    assert main(command) == 2
    monkeypatch.setitem(families.FAMILIES, "convnext", EncoderFamily("mean", build_convnext))
    assert main(command) == 0
    model, _ = load_model(tmp_path / "run" / "model")
    assert isinstance(model, ConvNextForImageClassification)


def test_a_recipe_is_an_entry_and_may_change_the_loop(
    phantom: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = phantom
    trained: list[int] = []

    def train_with_half_the_rate(model: Any, inputs: Any, buffer: Any, config: Any, work: Any):  # type: ignore[no-untyped-def]
        trained.append(work.number)
        return kinds.SLICE.train(model, inputs, buffer, config, replace(work, rate=work.rate / 2))

    def accept_the_first_round_only(sets: Any, before: Any, results: Any, policy: Any) -> Decision:
        decision = decide(sets, before, results, policy)
        return decision if before is None else replace(decision, chosen=None)

    command = ["boost", str(store), str(tmp_path / "run"), *SETTINGS, "--recipe", "careful"]
    assert main(command) == 2
    careful = Recipe(
        kind="slice",
        policy=BOOST.policy,
        train=train_with_half_the_rate,
        decide=accept_the_first_round_only,
    )
    monkeypatch.setitem(recipes.RECIPES, "careful", careful)
    assert main(command) == 0
    history = lines_of(tmp_path / "run")
    assert [line["accepted"] for line in history] == [True, False, False]
    assert trained == [line["round"] for line in history]
    peak = max(line["learning_rate"] for line in lines_of(tmp_path / "run", "metrics.jsonl"))
    assert main(["boost", str(store), str(tmp_path / "plain"), *SETTINGS, "--rounds", "1"]) == 0
    plain = lines_of(tmp_path / "plain", "metrics.jsonl")
    assert peak == pytest.approx(max(line["learning_rate"] for line in plain) / 2)


class MiddleConfig(ResNetConfig):
    model_type = "middle-slice"


class MiddleModel(ResNetForImageClassification):
    config_class = MiddleConfig


def start_middle(config: Any, folder: Any, targets: Any) -> kinds.Model:
    made = build_model(config.model, config.inputs, config.seed)
    options = {name: value for name, value in made.config.to_dict().items() if name != "model_type"}
    model = MiddleModel(MiddleConfig(**options))
    model.load_state_dict(made.state_dict())
    model.accepts_loss_kwargs = False
    return model, config.inputs


def test_a_kind_of_model_is_an_entry_and_a_recipe(
    phantom: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = phantom
    scored: list[int] = []

    def score(model: Any, inputs: Any, buffer: Any, studies: Any) -> Any:
        assert isinstance(model, MiddleModel)
        scored.append(len(studies))
        return kinds.SLICE.score(model, inputs, buffer, studies)

    AutoConfig.register(MiddleConfig.model_type, MiddleConfig, exist_ok=True)
    AutoModelForImageClassification.register(MiddleConfig, MiddleModel, exist_ok=True)
    kind = replace(kinds.SLICE, start=start_middle, score=score)
    monkeypatch.setitem(kinds.KINDS, MiddleConfig.model_type, kind)
    monkeypatch.setitem(
        recipes.RECIPES, "middle", Recipe(kind=MiddleConfig.model_type, policy=BOOST.policy)
    )
    run = tmp_path / "run"
    assert main(["boost", str(store), str(run), *SETTINGS, "--recipe", "middle"]) == 0
    assert scored
    scored.clear()
    assert main(["evaluate", str(run), str(store)]) == 0
    assert main(["predict", str(run), str(store), str(tmp_path / "p.csv")]) == 0
    assert sum(scored) > 20, "evaluation and prediction score with the new kind too"


# ---- a way of finding vertebrae ------------------------------------------------------------------


def find_blocks(hu: Any, geometry: Any, overview: Any, levels: Any) -> Localization:
    """Every four slices a block, from the feet, as the studies of the tests are made."""
    found = []
    for number in range(LEVELS):
        level = f"C{LEVELS - number}"
        box = (slice(2 + 4 * number, 5 + 4 * number), slice(12, 24), slice(16, 36))
        inside = hu[box] > 300
        found.append(LocatedVertebra(level, box, inside, float(hu[box][inside].mean())))
    chosen = tuple(each for each in found if each.level in levels)
    return Localization("blocks:1", chosen, {})


def test_a_way_of_finding_vertebrae_is_a_function_and_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path / "source", "1.2.1")
    command = ["run", str(tmp_path / "source"), str(tmp_path / "store"), "--serial"]
    assert pipeline_main(command) == 0
    by_blocks = [*command, "--set", "locate_by=blocks"]
    assert pipeline_main(by_blocks) == 2
    monkeypatch.setitem(locate.LOCATORS, "blocks", find_blocks)
    assert pipeline_main(by_blocks) == 0
    store = StudyStore.open(str(tmp_path / "store"))
    record = store.record("1.2.1")
    assert record.localizer == "blocks:1"
    assert [vertebra.outcome for vertebra in record.vertebrae] == ["cropped"] * LEVELS
    assert (store.read_crop("1.2.1", "C7").hu > 300).any()
    assert store.check(record) == []


# Another region of the spine is followed, from DICOM to a submission, by test_other_targets.py.
