"""The rooms keep apart: a worker installs only the pipeline, a trainer only the training."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]

FORBIDDEN = {
    "storage_schemas": {"pipeline", "training", "dask", "distributed", "torch", "pydicom"},
    "pipeline": {"training", "torch", "transformers", "monai"},
    "training": {"pipeline", "dask", "distributed", "pydicom"},
}
FORBIDDEN_TO_INSTALL = {
    "pipeline": {"torch", "transformers", "monai"},
    "training": {"dask", "distributed", "pydicom"},
}


def modules_of(package: str) -> list[str]:
    return sorted(
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in (REPOSITORY / package).rglob("*.py")
    )


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_loads_nothing_that_it_must_not_know(package: str) -> None:
    """In an interpreter where the forbidden packages are not to be had, every module is imported.

    Imports inside functions count too: each is executed by name. Libraries that would use such a
    package where it is installed, as nibabel does, do without it.
    """
    names = modules_of(package)
    assert len(names) > 2
    script = (
        "import ast, importlib, pathlib, sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(FORBIDDEN[package])!r}))\n"
        f"for name in {names!r}:\n"
        "    module = importlib.import_module(name)\n"
        "    for node in ast.walk(ast.parse(pathlib.Path(module.__file__).read_text())):\n"
        "        if isinstance(node, ast.Import):\n"
        "            [importlib.import_module(alias.name) for alias in node.names]\n"
        "        elif isinstance(node, ast.ImportFrom) and not node.level:\n"
        "            importlib.import_module(node.module)\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert result.returncode == 0, result.stderr


def closure(extra: str) -> Iterator[str]:
    """Every distribution that ``cspine[extra]`` installs, from what each declares."""
    todo, seen = [("cspine", frozenset({extra}))], set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        yield name
        for line in requires(name) or []:
            requirement = Requirement(line)
            wanted = [{"extra": each} for each in (extras or {""})]
            if requirement.marker is None or any(map(requirement.marker.evaluate, wanted)):
                todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))


@pytest.mark.parametrize("extra", FORBIDDEN_TO_INSTALL)
def test_an_extra_installs_nothing_of_the_other_side(extra: str) -> None:
    installed = set(closure(extra))
    assert len(installed) > 20
    assert installed & FORBIDDEN_TO_INSTALL[extra] == set()


def test_the_closure_sees_what_each_side_does_need() -> None:
    assert {"dask", "pydicom", "zarr"} <= set(closure("pipeline"))
    assert {"torch", "transformers", "zarr"} <= set(closure("training"))
