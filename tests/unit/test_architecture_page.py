"""The architecture page and its picture show the packages as they are."""

import re

from tests.conftest import REPOSITORY

PACKAGES = ("pipeline", "training", "presentation", "storage_schemas")
PAGE = (REPOSITORY / "docs/architecture.md").read_text()
PICTURE = (REPOSITORY / "docs/images/architecture.svg").read_text()


def packages() -> list[str]:
    """Dotted names of all packages and subpackages."""
    folders = [path.parent for each in PACKAGES for path in (REPOSITORY / each).rglob("*.py")]
    return sorted({".".join(folder.relative_to(REPOSITORY).parts) for folder in folders})


def exists(name: str) -> bool:
    path = REPOSITORY.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def named(text: str) -> list[str]:
    """Dotted names in code spans that begin with one of the packages."""
    return re.findall(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)*)`", text)


def test_every_package_and_subpackage_has_a_row_on_the_page() -> None:
    rows = {name for line in PAGE.splitlines() if line.startswith("|") for name in named(line)}
    assert [name for name in packages() if name not in rows] == []


def test_every_top_module_of_the_two_applications_has_a_row_on_the_page() -> None:
    rows = {name for line in PAGE.splitlines() if line.startswith("|") for name in named(line)}
    modules = [
        f"{package}.{path.stem}"
        for package in ("pipeline", "training")
        for path in sorted((REPOSITORY / package).glob("*.py"))
        if path.stem != "__init__"
    ]
    assert [name for name in modules if name not in rows] == []


def test_the_page_names_no_package_or_module_that_does_not_exist() -> None:
    found = named(PAGE)
    assert len(found) > 50
    assert [name for name in found if not exists(name)] == []


def test_each_link_to_code_leads_to_the_module_that_it_names() -> None:
    links = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/.]+)\)", PAGE)
    assert len(links) > 20
    for name, target in links:
        assert name == target.removesuffix(".py").replace("/", "."), target


def test_the_picture_shows_the_packages_and_the_subpackages_of_the_applications() -> None:
    shapes = re.findall(r"<g><title>([\w.]+)</title><rect [^>]*/><text [^>]*>(\w+)<", PICTURE)
    inside = [n for n in packages() if n.count(".") == 1 and n.startswith(("pipeline", "training"))]
    assert sorted(name for name, _ in shapes) == sorted([*PACKAGES, *inside])
    assert [(name, shown) for name, shown in shapes if name.split(".")[-1] != shown] == []


def test_a_name_exists_where_a_folder_or_a_module_has_it() -> None:
    assert exists("pipeline.dicom")
    assert exists("pipeline.run")
    assert not exists("pipeline.dicoms")
    assert not exists("training.rounds.judges")
