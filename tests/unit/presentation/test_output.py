from pathlib import Path

import pytest

from presentation.output import csv_text, write_output
from storage_schemas.errors import UsageError

REPOSITORY = Path(__file__).resolve().parents[3]


def test_an_output_is_written_with_its_folder_and_tells_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    assert write_output(path, "5 µm\n") == 6
    assert path.read_bytes() == b"5 \xc2\xb5m\n"


def test_an_output_that_cannot_be_written_is_named_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "page.html"
    with pytest.raises(UsageError) as caught:
        write_output(path, "")
    assert (caught.value.kind, caught.value.key) == ("config-invalid", str(path))
    assert caught.value.detail == "cannot be written: File exists"


def test_a_csv_quotes_what_it_must_and_ends_lines_with_lf() -> None:
    assert csv_text(["a", "b"], [[1, "x,y"], [0.5, 'say "z"']]) == (
        'a,b\n1,"x,y"\n0.5,"say ""z"""\n'
    )


def test_an_oserror_becomes_a_reason_in_one_place() -> None:
    packages = ("pipeline", "training", "presentation", "storage_schemas")
    files = [path for package in packages for path in (REPOSITORY / package).rglob("*.py")]
    found = [str(p.relative_to(REPOSITORY)) for p in files if "strerror" in p.read_text()]
    assert found == ["storage_schemas/errors.py"]
