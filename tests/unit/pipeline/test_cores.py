import os
from pathlib import Path

import dask.system
import numpy as np
import pytest

import pipeline.dicom.volume
from pipeline.cores import available_cores
from pipeline.dicom.volume import read_volume
from pipeline.phantom.cohort import make_cohort
from tests import made_dicom

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def eight_cores_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac has neither the call, nor psutil's, nor cgroups."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 8, raising=False)  # Python 3.13
    monkeypatch.setattr(dask.system, "psutil", None)
    monkeypatch.setattr(dask.system, "LINUX", False)


@pytest.mark.usefixtures("eight_cores_of_a_mac")
def test_cores_are_counted_where_the_system_knows_no_affinity() -> None:
    assert available_cores() == 8


@pytest.mark.usefixtures("eight_cores_of_a_mac")
@pytest.mark.parametrize(("quota", "cores"), [(150_000, 2), (50_000, 1), (3_200_000, 8)])
def test_a_containers_quota_limits_the_cores(
    monkeypatch: pytest.MonkeyPatch, quota: int, cores: int
) -> None:
    monkeypatch.setattr(dask.system, "LINUX", True)
    monkeypatch.setattr(dask.system, "_try_extract_cgroup_cpu_quota", lambda: (quota, 100_000))
    assert available_cores() == cores


@pytest.mark.usefixtures("eight_cores_of_a_mac")
def test_a_phantom_cohort_is_made_and_read_where_the_system_knows_no_affinity(
    tmp_path: Path,
) -> None:
    made = make_cohort(tmp_path, studies=1, size=32, slices=12)
    objects = sorted(tmp_path.glob("train_images/*/*"))
    volume = read_volume((path.name, path.read_bytes()) for path in objects)
    assert volume.hu.shape == (made.slices, 32, 32)


def test_a_volume_is_the_same_on_any_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.random.default_rng(2).integers(0, 4096, (7, 6, 5), np.uint16)
    objects = made_dicom.name_objects(made_dicom.make_stack(words))
    volumes = []
    for cores in (1, 3):
        monkeypatch.setattr(pipeline.dicom.volume, "available_cores", lambda n=cores: n)
        volumes.append(read_volume(objects))
    np.testing.assert_array_equal(volumes[0].hu, volumes[1].hu)
    assert volumes[0].slices == volumes[1].slices


def test_cores_are_counted_in_one_place() -> None:
    packages = ("pipeline", "training", "presentation", "storage_schemas", "benchmarks")
    files = [path for package in packages for path in (REPOSITORY / package).rglob("*.py")]
    counting = [
        str(path.relative_to(REPOSITORY))
        for path in files
        if any(call in path.read_text() for call in ("sched_getaffinity", "cpu_count"))
    ]
    assert counting == ["pipeline/cores.py"]
