"""Settings of a run: checked by field, and told apart by a digest where they change the result."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.config import StudyConfig
from pipeline.dicom.limits import Limits
from presentation.settings import settings_of
from storage_schemas.errors import UsageError
from storage_schemas.store import StudyStore
from tests.studies import write_cohort


def test_every_setting_is_described_and_every_number_has_a_unit() -> None:
    for path, setting in settings_of(StudyConfig).items():
        assert setting.text.endswith("."), path
        if isinstance(setting.default, int | float) and not isinstance(setting.default, bool):
            assert setting.unit, path


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mask_labels": "versa"}, "mask_labels: expected one of rsna, verse, totalsegmentator"),
        ({"vertebrae": ("C1", "C9")}, 'vertebrae: expected one of C1, .*, got "C9"'),
        ({"margin_mm": 101}, r"StudyConfig\.margin_mm: expected a number at least 0 and"),
        ({"max_bad_share": "all"}, r'max_bad_share: expected a number .*, got "all"'),
        ({"limits": {}}, r"StudyConfig\.limits: expected Limits, got dict"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_by_name(values: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        StudyConfig(**values)


def test_limits_change_the_digest_only_where_they_are_not_the_defaults() -> None:
    usual = StudyConfig().digest(masked=True)
    assert StudyConfig(limits=Limits()).digest(masked=True) == usual
    assert StudyConfig(limits=Limits(inflation=65)).digest(masked=True) != usual


def test_equal_settings_have_equal_digests_whatever_their_type() -> None:
    assert StudyConfig(margin_mm=8) == StudyConfig(margin_mm=8.0)
    assert StudyConfig(margin_mm=8).digest(masked=True) == StudyConfig().digest(masked=True)


def test_a_study_over_a_budget_is_committed_once_the_budget_is_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, masks = write_cohort(tmp_path, 1)
    words = ["run", str(source), str(tmp_path / "store"), "--masks", str(masks), "--serial"]
    assert main([*words, "--set", "limits.volume_bytes=1000"]) == 1
    (record,) = StudyStore.open(str(tmp_path / "store")).records()
    assert record.kind == "volume-over-budget"
    assert main([*words, "--json", "--set", "limits.volume_bytes=1000000000"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["committed"] == 1
