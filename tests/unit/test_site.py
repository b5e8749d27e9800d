"""The rules that docs/conf.py adds to the documentation site; `make docs` applies them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def conf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_conf", REPOSITORY / "docs" / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "content",
    [
        '<script src="https://host.example/a.js"></script>',
        '<link rel="stylesheet" href="//host.example/a.css">',
        '<img alt="" src="http://host.example/a.png">',
        '<iframe src="HTTPS://host.example/"></iframe>',
        "<script>let a = 1</script><img alt='' src='https://host.example/a.png'>",
    ],
)
def test_a_page_that_loads_something_from_another_host_is_found(
    conf: ModuleType, tmp_path: Path, content: str
) -> None:
    (tmp_path / "page.html").write_text(f"<!doctype html><body>{content}</body>")
    ((file, address),) = conf.find_remote_resources(tmp_path)
    assert file == tmp_path / "page.html"
    assert "host.example" in address


def test_a_style_that_loads_a_font_from_another_host_is_found(
    conf: ModuleType, tmp_path: Path
) -> None:
    style = '@import "https://a.example/x"; p { background: url(//b.example/y), url(z.png) }'
    (tmp_path / "style.css").write_text(style)
    found = [address for _, address in conf.find_remote_resources(tmp_path)]
    assert found == ["https://a.example/x", "//b.example/y"]


def test_a_page_may_link_to_another_host_and_load_what_lies_beside_it(
    conf: ModuleType, tmp_path: Path
) -> None:
    page = (
        '<a href="https://host.example">x</a><img src="a.png"><script src="_static/b.js"></script>'
    )
    (tmp_path / "page.html").write_text(page)
    assert list(conf.find_remote_resources(tmp_path)) == []


@pytest.mark.parametrize(
    ("link", "then"),
    [
        ("[a](../pipeline/study.py)", "[a](#pipeline.study)"),
        ("[a](../../storage_schemas/crops.py)", "[a](#storage_schemas.crops)"),
        ("[a](../training/rounds)", "[a](#training.rounds)"),
        ("[a](../training/rounds/)", "[a](#training.rounds)"),
        ("[a](../tests/conftest.py)", "[a](../tests/conftest.py)"),
        ("[a](training.md)", "[a](training.md)"),
    ],
)
def test_links_to_modules_lead_to_the_reference(conf: ModuleType, link: str, then: str) -> None:
    assert conf.link_modules(link) == then


def test_the_reference_has_every_module_of_a_package(conf: ModuleType) -> None:
    page = conf.describe_package(REPOSITORY / "pipeline")
    modules = [path.stem for path in (REPOSITORY / "pipeline").glob("*.py")]
    for name in sorted({*modules} - {"__init__"}):
        assert f".. automodule:: pipeline.{name}\n" in page
    assert "   pipeline.dicom\n" in page.partition("toctree::")[2]


def test_the_reference_of_a_package_opens_with_what_it_exports(conf: ModuleType) -> None:
    opening = conf.describe_package(REPOSITORY / "training").partition("toctree::")[0]
    assert ".. autofunction:: training.boost\n" in opening
    assert ".. autoclass:: training.RunConfig\n" in opening
    assert "__version__" not in opening


def test_signatures_give_types_without_their_constraints(conf: ModuleType) -> None:
    shares = "(a: ~typing.Annotated[float, msgspec.Meta(ge=0, lt=1, extra={'unit': 'x'})] = 0.5"
    counts = ", b: tuple[~typing.Annotated[int, msgspec.Meta(ge=1)], ...] = (1, 2))"
    assert conf.hide_constraints(shares + counts) == "(a: float = 0.5, b: tuple[int, ...] = (1, 2))"
