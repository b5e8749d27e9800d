import copy
import json
import pickle

import pyarrow as pa
import pytest

from storage_schemas.errors import StudyError
from storage_schemas.study_key import StudyKey

INVALID = ["", ".", "..", "1..2", "1.", ".1", "1/2", "../1", "1.2\n", "a.1", "1" * 65, "\u0661"]


@pytest.mark.parametrize("text", INVALID)
def test_only_a_uid_may_become_a_key(text: str) -> None:
    assert not StudyKey.is_valid(text)
    with pytest.raises(StudyError) as caught:
        StudyKey(text)
    assert caught.value.kind == "study-key-invalid"


@pytest.mark.parametrize("text", ["1.2.826.0.1.3680043.20574", "0", "1" * 64])
def test_a_uid_is_a_key(text: str) -> None:
    assert StudyKey.is_valid(text)
    assert StudyKey(text) == text


def test_a_key_is_checked_once() -> None:
    key = StudyKey("1.2.3")
    assert StudyKey(key) is key


def test_a_key_is_a_string_to_json_arrow_and_dictionaries() -> None:
    key = StudyKey("1.2.3")
    assert json.dumps({key: [key]}) == '{"1.2.3": ["1.2.3"]}'
    assert pa.array([key], pa.string()).to_pylist() == ["1.2.3"]
    assert {"1.2.3": 1}[key] == 1
    assert f"{key}/C1" == "1.2.3/C1"


def test_a_key_stays_a_key_in_copies_and_other_processes() -> None:
    key = StudyKey("1.2.3")
    for copied in (pickle.loads(pickle.dumps(key)), copy.deepcopy(key)):
        assert (type(copied), copied) == (StudyKey, key)


def test_a_folder_without_a_uid_gets_a_key_of_its_own() -> None:
    key = StudyKey.from_url("s3://bucket/Müller^Karl")
    assert key == StudyKey.from_url("s3://bucket/Müller^Karl")
    assert key != StudyKey.from_url("s3://bucket/Muller^Karl")
    assert key.startswith("2.25.")
    assert StudyKey.is_valid(str(key))
    assert StudyKey.from_url("/data/\udcff").startswith("2.25.")
