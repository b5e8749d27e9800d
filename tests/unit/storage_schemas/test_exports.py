"""What a reader of a store gets from ``import storage_schemas``."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import storage_schemas
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("name", storage_schemas.__all__)
def test_every_name_is_there_and_at_home_in_a_module_of_the_package(name: str) -> None:
    found = getattr(storage_schemas, name)
    assert name in dir(storage_schemas)
    if isinstance(found, type):
        assert found.__name__ == name
        assert found.__module__.startswith("storage_schemas.")


def test_the_version_is_that_of_the_distribution() -> None:
    assert storage_schemas.__version__ == version("cspine")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        storage_schemas.no_such_name  # noqa: B018 - the access is the test


def test_the_import_brings_no_library_and_names_bring_their_own() -> None:
    script = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import storage_schemas\n"
        "slow = {'numpy', 'zarr', 'pyarrow', 'msgspec', 'fsspec', 'numcodecs'}\n"
        "print('imported:', *sorted(slow & set(sys.modules)))\n"
        "print('modules:', *sorted(m for m in set(sys.modules) - before if 'schemas' in m))\n"
        "storage_schemas.UsageError, storage_schemas.__version__\n"
        "print('errors:', *sorted(slow & set(sys.modules)))\n"
        "storage_schemas.Targets\n"
        "print('targets:', *sorted(slow & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert result.stdout.splitlines() == [
        "imported:",
        "modules: storage_schemas",
        "errors:",
        "targets: msgspec",
    ]
