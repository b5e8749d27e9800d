"""What works without extras: help at once, the reader of a store, and one line for the rest."""

import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from pipeline import cli as pipeline_cli
from presentation.commandline import OURS
from tests.commandlines import commands_of
from tests.studies import write_cohort
from tests.unit.test_import_rules import REPOSITORY, closure
from training import cli as training_cli

SLOW = {"dask", "matplotlib", "numpy", "pyarrow", "pydicom", "rich", "scipy", "torch", "zarr"}
"""What help must not wait for."""
COMMANDS = {
    "pipeline": {
        "phantom": "out",
        "inspect": "source",
        "run": "source store",
        "verify": "store",
        "catalog": "store",
        "report": "store out.html",
    },
    "training": {
        "boost": "store run",
        "localizer": "store out.onnx",
        "blend": "out run other --store store",
        "evaluate": "run store",
        "predict": "run store out.csv",
        "report": "run out.html",
    },
}


def run_python(script: str, folder: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY)},
    )


def hide(names: set[str]) -> str:
    """Lines of a script after which the packages cannot be imported, as if not installed."""
    return (
        "import sys\n"
        "from importlib.abc import MetaPathFinder\n"
        "class Hidden(MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {sorted(names)!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )


def extras_only() -> set[str]:
    """The installed packages that the base install does not bring."""
    base = {canonicalize_name(name) for name in closure("")}
    return {
        package
        for package, owners in packages_distributions().items()
        if not base & {canonicalize_name(owner) for owner in owners} and package not in OURS
    }


@pytest.mark.parametrize("program", COMMANDS)
def test_help_imports_nothing_slow(program: str) -> None:
    parser = {"pipeline": pipeline_cli.parser, "training": training_cli.parser}[program]()
    lines = [[], *([name] for name in commands_of(parser))]
    result = run_python(
        "import sys\n"
        f"from {program}.cli import main\n"
        f"for words in {lines!r}:\n"
        "    try:\n"
        "        main([*words, '--help'])\n"
        "    except SystemExit as ended:\n"
        "        assert ended.code == 0\n"
        f"print('imported:', *sorted({SLOW!r} & set(sys.modules)))\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("package", COMMANDS)
def test_a_package_offers_its_functions_and_imports_nothing_slow_until_they_are_used(
    package: str,
) -> None:
    result = run_python(
        f"import sys, {package}\n"
        f"offered = [getattr({package}, name) for name in {package}.__all__]\n"
        f"print(*sorted({SLOW!r} & set(sys.modules)))\n"
        f"print({package}.__version__ == offered[{package}.__all__.index('__version__')])\n"
        f"print(hasattr({package}, 'nothing'))\n"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["", "True", "False"]


def test_the_test_of_help_would_see_what_a_command_imports() -> None:
    result = run_python("import sys, pipeline.study\nprint(*sorted(sys.modules))")
    assert {"numpy", "pydicom", "zarr"} <= set(result.stdout.split())


@pytest.mark.parametrize(
    ("program", "command"), [(program, name) for program in COMMANDS for name in COMMANDS[program]]
)
def test_a_command_whose_extra_is_missing_names_it_in_one_line(
    program: str, command: str, tmp_path: Path
) -> None:
    words = [command, *COMMANDS[program][command].split()]
    script = f"from {program}.cli import main\nsys.exit(main({words!r}))\n"
    result = run_python(hide(extras_only()) + script, tmp_path)
    (line,) = result.stderr.splitlines()
    assert f"is not installed: pip install 'cspine[{program}]' [dependency-missing]" in line
    assert result.returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", COMMANDS)
def test_help_and_version_need_no_extra(program: str) -> None:
    script = hide(extras_only()) + (
        f"from {program}.cli import main, parser\nparser().format_help()\nmain(['--version'])\n"
    )
    result = run_python(script)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"cspine-{program} ")


def test_a_store_is_read_without_extras(tmp_path: Path) -> None:
    source, masks = write_cohort(tmp_path, 1)
    store = tmp_path / "store"
    words = ["run", str(source), str(store), "--masks", str(masks), "--serial"]
    assert pipeline_cli.main(words) == 0
    script = (
        "from storage_schemas import StudyStore\n"
        f"store = StudyStore.open({str(store)!r})\n"
        "record = next(iter(store.records()))\n"
        "crop = store.read_crop(record.study, record.vertebrae[0].level)\n"
        "print(crop.hu.dtype, store.read_table('slices').num_rows > 0)\n"
    )
    result = run_python(hide(extras_only()) + script)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == ["int16", "True"]
