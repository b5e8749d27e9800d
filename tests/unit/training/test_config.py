"""Settings of a run and of a localizer: read back, by old names too, and checked by field."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from presentation.settings import settings_of
from storage_schemas.errors import UsageError
from training.config import OLD_NAMES, PRESETS, RunConfig
from training.localizer.config import LOCALIZER_PRESETS, LocalizerConfig

KINDS = (RunConfig, LocalizerConfig)


@pytest.mark.parametrize("config", PRESETS.values())
def test_settings_read_back_equal_from_json(config: RunConfig) -> None:
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_settings_that_an_earlier_version_wrote_are_read_by_their_old_names() -> None:
    document: dict[str, Any] = json.loads(json.dumps(PRESETS["demo"].to_json()))
    for old, new in OLD_NAMES.items():
        part, name = old.split(".")
        document[part][name] = document[part].pop(new.partition(".")[2])
    assert "broken_share" in document["train"]
    assert RunConfig.from_json(document) == PRESETS["demo"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_described_in_a_phrase_that_stands_alone(kind: type) -> None:
    for path, setting in settings_of(kind).items():
        assert setting.text.endswith("."), path
        assert setting.text[0].isupper(), path
        assert not setting.text.startswith(("Of ", "Likewise")), path


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_but_means_has_a_unit(kind: type) -> None:
    bare = {
        path
        for path, setting in settings_of(kind).items()
        if isinstance(setting.default, int | float | tuple)
        and not isinstance(setting.default, bool)
        if not setting.unit
    }
    assert bare <= {"inputs.mean"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"split": {"guard": 0.5, "test": 0.5}}, "split: guard, calibration and test"),
        ({"split": {"folds": 1}}, "split: fold 0 of 1"),
        ({"split": {"folds": 3, "fold": 4}}, "split: fold 4 of 3"),
        ({"split": {"folds": -1}}, "split.folds: expected a whole number at least 0, got -1"),
        ({"inputs": {"windows": [[0, 1], [0, 1]]}}, "inputs: windows"),
        ({"inputs": {"windows": [[1, 0]]}}, "inputs: windows"),
        ({"inputs": {"windows": [[1]]}}, "inputs.windows: expected a list"),
        ({"inputs": {"std": [0, 1, 1]}}, "inputs.std: expected a list of 3, each a number above 0"),
        ({"inputs": {"neighbours": 4}}, "inputs: neighbours: expected an odd number, got 4"),
        ({"model": {"width": 100, "heads": 3}}, "model: no ViT of width 100 has 3 heads"),
        ({"model": {"family": "resnet", "patch": 7}}, "model: a residual network"),
        ({"train": {"epochs": "three"}}, 'train.epochs: expected a number above 0, got "three"'),
        ({"augment": {"noise": "loud"}}, 'augment.noise: expected a number at least 0, got "loud"'),
        ({"boost": {"step_lengths": [0.0]}}, "boost.step_lengths: expected a list, each a number"),
        ({"seed": -1}, "seed: expected a whole number at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(values: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunConfig().override(values)
    assert caught.value.detail.startswith(said)


def test_presets_of_the_localizer_hold_for_its_own_checks() -> None:
    for config in LOCALIZER_PRESETS.values():
        assert LocalizerConfig(**{**asdict(config), "augment": config.augment}) == config
