"""Every setting can be changed from the command line: by ``--set``, and many by their own flag."""

from typing import Any

import pytest

from pipeline import api as pipeline_api
from pipeline import cli as pipeline_cli
from pipeline.config import NetworkFile, StudyConfig
from pipeline.flags import STUDY_SETTINGS
from presentation.setting_flags import SettingFlags
from presentation.setting_types import is_kind, literals
from presentation.settings import Setting, settings_of
from training import api as training_api
from training import cli as training_cli
from training.config import RunConfig
from training.flags import LOCALIZER_SETTINGS, RUN_SETTINGS
from training.localizer.config import LocalizerConfig

COMMANDS = {
    RunConfig: (training_cli.main, training_api, "boost", "boost STORE RUN"),
    LocalizerConfig: (training_cli.main, training_api, "train_localizer", "localizer STORE OUT"),
    StudyConfig: (pipeline_cli.main, pipeline_api, "run_pipeline", "run SOURCE STORE"),
}
FLAGS = {
    RunConfig: RUN_SETTINGS,
    LocalizerConfig: LOCALIZER_SETTINGS,
    StudyConfig: STUDY_SETTINGS,
}
TOGETHER = {"split.fold": "split.folds=2"}
"""What else must be set for another value of a field to make sense."""
VALUES = {
    "split.folds": "3",
    "recipe": "seed",
    "inputs.windows": "[[-100, 900]]",
    "inputs.neighbours": "5",
    "inputs.size": "64",
    "size": "64",
    "channels": "16,32",
    "vertebrae": "C2,C1",
    "series": "2",
    "locate_by": "another",
    "model.family": "resnet",
    "masks": "masks",
    "mask_labels": "verse",
    "localizer": "model.onnx",
}
"""Other values of fields whose type alone does not give one."""


class Captured(BaseException):
    """Ends a command where its settings are known, before anything is done."""


def another(setting: Setting) -> str:
    """A text that stands for another value than the default."""
    if setting.path in VALUES:
        return VALUES[setting.path]
    if is_kind(setting.hint, bool):
        return str(not setting.default).lower()
    if names := literals(setting.hint):
        return next(name for name in names if name != setting.default)
    if is_kind(setting.hint, float):
        return str(setting.default / 2)
    if is_kind(setting.hint, int):
        return str(2 * (setting.default or 0) or 1)
    return ",".join(str(value / 2) for value in setting.default)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings that commands were given."""
    found: list[Any] = []

    def capture(*arguments: Any, **more: Any) -> None:
        found.append(arguments[2])
        raise Captured

    for _, module, name, _ in COMMANDS.values():
        monkeypatch.setattr(module, name, capture)
    chosen = NetworkFile("file:///model.onnx", "0" * 64)
    monkeypatch.setattr("pipeline.vertebrae.onnx_network.choose_network", lambda url: chosen)
    return found


def value_of(settings: Any, path: str) -> Any:
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


@pytest.mark.parametrize(
    ("kind", "count"), [(RunConfig, 58), (LocalizerConfig, 21), (StudyConfig, 16)]
)
def test_every_field_can_be_set_from_the_command_line(
    kind: type, count: int, given: list[Any]
) -> None:
    main, _, _, command = COMMANDS[kind]
    settings = settings_of(kind)
    unreachable = []
    for path, setting in settings.items():
        words = [*command.split(), "--set", f"{path}={another(setting)}"]
        if path in TOGETHER:
            words += ["--set", TOGETHER[path]]
        with pytest.raises(Captured):
            main(words)
        if value_of(given[-1], path) == value_of(kind(), path):
            unreachable.append(path)
    assert unreachable == []
    assert len(settings) == len(given) == count


@pytest.mark.parametrize("kind", FLAGS)
def test_every_flag_sets_the_field_that_it_names(kind: type, given: list[Any]) -> None:
    main, _, _, command = COMMANDS[kind]
    flags: SettingFlags = FLAGS[kind]
    for flag, path in (flags.flags | flags.old_flags).items():  # type: ignore[operator]
        setting = settings_of(kind)[path]
        words = [flag] if is_kind(setting.hint, bool) else [flag, another(setting)]
        if path in TOGETHER:
            words += ["--set", TOGETHER[path]]
        with pytest.raises(Captured):
            main([*command.split(), *words])
        assert value_of(given[-1], path) != value_of(kind(), path), flag
