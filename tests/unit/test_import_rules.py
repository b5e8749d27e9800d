"""The rooms keep apart: a worker installs only the pipeline, a trainer only the training."""

import ast
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
    "storage_schemas": {
        *("presentation", "pipeline", "training", "dask", "distributed", "torch", "pydicom"),
        *("rich", "jinja2", "matplotlib"),
    },
    "presentation": {"pipeline", "training", "dask", "distributed", "torch", "pydicom"},
    "pipeline": {"training", "torch", "transformers", "monai"},
    "training": {"pipeline", "dask", "distributed", "pydicom"},
}
FLOORS = {
    "pipeline": [
        {"cli"},
        {"api"},
        {"flags"},
        {"report"},
        {"runlog", "executors", "inspection", "verify"},
        {"run"},
        {"tables"},
        {"slice_labels"},
        {"study"},
        {"study_inputs", "study_rules", "studies"},
        {"vertebrae"},
        {"config"},
        {"dicom"},
        {"source"},
        {"phantom"},
        {"cores", "lease"},
    ],
    "training": [
        {"cli"},
        {"api"},
        {"flags"},
        {"report"},
        {"evaluation"},
        {"explanation"},
        {"rounds"},
        {"models"},
        {"metrics"},
        {"localizer"},
        {"optimization"},
        {"data"},
        {"runs", "ranks", "devices"},
        {"durable"},
        {"config"},
    ],
}
"""Subpackages and top modules from the top floor down; each imports only from lower floors."""
ARROWS = {
    "pipeline": {"presentation", "storage_schemas"},
    "training": {"presentation", "storage_schemas"},
    "presentation": {"storage_schemas.errors"},
    "storage_schemas": set(),
}
"""What each package may import of the others."""
MOST_MODULES = 17
FORBIDDEN_TO_INSTALL = {
    "pipeline": {"torch", "transformers", "monai"},
    "training": {"dask", "distributed", "pydicom"},
}


def modules_of(package: str) -> list[str]:
    return sorted(
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in (REPOSITORY / package).rglob("*.py")
    )


def imports_of(package: str) -> Iterator[tuple[str, str]]:
    """Every import of this project's modules, inside functions too: (module, imported module)."""
    known = {name for each in ARROWS for name in modules_of(each)}
    for name in modules_of(package):
        path = REPOSITORY / name.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name}: imports are absolute"
                each = [f"{node.module}.{alias.name}" for alias in node.names]
                found = [one if one in known else str(node.module) for one in each]
            else:
                continue
            yield from ((name, one) for one in found if one in known)


@pytest.mark.parametrize("package", ARROWS)
def test_packages_import_one_way(package: str) -> None:
    def allowed(found: str) -> bool:
        return any(
            found == one or found.startswith(f"{one}.") for one in {package, *ARROWS[package]}
        )

    assert [arrow for arrow in imports_of(package) if not allowed(arrow[1])] == []


@pytest.mark.parametrize("package", FLOORS)
def test_subpackages_import_downwards(package: str) -> None:
    level = {name: floor for floor, names in enumerate(FLOORS[package]) for name in names}
    inside = [
        (one, other)
        for one, other in imports_of(package)
        if one != package and other.startswith(f"{package}.")
    ]
    assert len(inside) > 20
    wrong = [
        (one, other)
        for one, other in inside
        if (a := one.split(".")[1]) != (b := other.split(".")[1]) and level[a] >= level[b]
    ]
    assert wrong == []


def test_a_package_itself_has_no_modules_but_those_on_its_floors() -> None:
    for package, floors in FLOORS.items():
        found = {name.split(".")[1] for name in modules_of(package) if "." in name}
        assert found == set().union(*floors)


def test_no_folder_is_crowded() -> None:
    folders = [path.parent for each in ARROWS for path in (REPOSITORY / each).rglob("*.py")]
    crowded = {str(f): folders.count(f) - 1 for f in folders if folders.count(f) - 1 > MOST_MODULES}
    assert crowded == {}


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
