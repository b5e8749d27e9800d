"""Configuration of the documentation site; `make docs` builds it into build/docs.

Warnings are errors. Nothing is fetched while the site is built, and no page loads anything from
elsewhere when it is read: `find_remote_resources` checks every page that was written.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # the site describes this tree, whatever is installed
API_PAGES = Path(__file__).parent / "api" / "generated"
PACKAGES = ("storage_schemas", "pipeline", "training", "presentation")
_ANNOTATED = re.compile(r"~?typing\.Annotated\[([^()]+?), msgspec\.Meta\([^()]*\)\]")
_LOADING = re.compile(r"<(?:script|link|img|iframe|source|video|audio|embed)\b[^>]*>", re.I)
"""Tags that load something; what ``a`` links to is not loaded."""
_ADDRESS = re.compile(r"\b(?:src|srcset|href)\s*=\s*[\"']?([^\"'\s>]+)", re.I)
_SOURCE_LINK = re.compile(rf"\]\((?:\.\./)+((?:{'|'.join(PACKAGES)})(?:/\w+)*)(?:\.py|/)?\)")

project = "cspine"
author = "cspine contributors"
project_copyright = author
release = metadata.version("cspine")
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
]
default_role = "py:obj"  # so `name` in a docstring is a link where there is such a name

autodoc_member_order = "bysource"
# Sphinx 9.0 else reads the docstrings of everything that a module imports, and drops them then.
autodoc_use_legacy_class_based = True
# What a package exports is described under two names, and a link may lead to either.
suppress_warnings = ["ref.python"]
autosummary_generate = False  # numpydoc loads that extension; nothing here uses it
maximum_signature_line_length = 88
toc_object_entries = False  # each page would hold, and the build copy, a tree of all functions

numpydoc_show_class_members = False
# What would mislead: parameters that are not there, and sections that are not parsed as such.
numpydoc_validation_checks = {"PR02", "PR10", "GL06", "GL07"}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"cspine {release}"
html_show_sphinx = False
html_copy_source = False


def describe_package(folder: Path) -> str:
    """The page of a package or subpackage in the API, with all its modules, as reStructuredText.

    Parameters
    ----------
    folder : pathlib.Path
        A folder with ``__init__.py``, inside the repository.

    Returns
    -------
    str
        What the package exports, a table of contents of its subpackages, and a section for each of
        its modules.
    """
    name = ".".join(folder.relative_to(REPOSITORY).parts)
    modules = sorted(path.stem for path in folder.glob("*.py") if path.name != "__init__.py")
    parts = sorted(path.parent.name for path in folder.glob("*/__init__.py"))
    contents = "".join(f"   {name}.{part}\n" for part in parts)
    text = _heading(name, "=") + "".join(_public(name))
    text += f"\n.. toctree::\n\n{contents}" if parts else ""
    sections = (_heading(f"{name}.{module}", "-") + "   :members:\n" for module in modules)
    return text + "".join(sections)


def _heading(module: str, line: str) -> str:
    title = module.replace("_", r"\_")
    return f"\n{title}\n{line * len(title)}\n\n.. automodule:: {module}\n"


def _public(package: str) -> Iterator[str]:
    """Yield a directive for each name of ``__all__``; autodoc misses names that are made on use."""
    module = import_module(package)
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        kind = "class" if isinstance(value, type) else "function" if callable(value) else ""
        if kind:
            members = "   :members:\n" if kind == "class" else ""
            yield f"\n.. auto{kind}:: {package}.{name}\n{members}"


def _write_api_pages(app: Sphinx) -> None:
    shutil.rmtree(API_PAGES, ignore_errors=True)
    API_PAGES.mkdir()
    for package in PACKAGES:
        for file in (REPOSITORY / package).rglob("__init__.py"):
            name = ".".join(file.parent.relative_to(REPOSITORY).parts)
            (API_PAGES / f"{name}.rst").write_text(describe_package(file.parent))


def find_remote_resources(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each page or style sheet of a folder with what it would load from elsewhere.

    Parameters
    ----------
    folder : pathlib.Path
        A built site.

    Yields
    ------
    (pathlib.Path, str)
        The file, and the address in it.
    """
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".html":
            tags = _LOADING.findall(file.read_text(encoding="utf-8"))
            addresses = [address for tag in tags for address in _ADDRESS.findall(tag)]
        elif file.suffix == ".css":
            addresses = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')]+)", file.read_text())
        else:
            continue
        yield from ((file, each) for each in addresses if re.match(r"(?:[a-z]+:)?//", each, re.I))


def link_modules(text: str) -> str:
    """Let links to a module's file in a document lead to the module's page in the reference."""
    return _SOURCE_LINK.sub(lambda found: f"](#{found[1].replace('/', '.')})", text)


def _link_modules(app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = link_modules(source[0])


def hide_constraints(signature: str) -> str:
    """Leave out of a signature what `Annotated` adds to a type, such as a range and a unit."""
    return _ANNOTATED.sub(r"\1", signature)


def _hide_constraints(
    _app: Sphinx, _what: str, _name: str, _value: Any, _options: Any, signature: str, returned: str
) -> tuple[str, str]:
    return hide_constraints(signature or ""), returned


def _check_resources(app: Sphinx, error: Exception | None) -> None:
    for file, address in [] if error else find_remote_resources(Path(app.outdir)):
        name = file.relative_to(app.outdir)
        logging.getLogger(__name__).warning("%s loads %s from another host", name, address)


def setup(app: Sphinx) -> None:
    """Register the pages of the API, what they and the guides say, and the check of the site."""
    app.connect("builder-inited", _write_api_pages)
    app.connect("source-read", _link_modules)
    app.connect("autodoc-process-signature", _hide_constraints)
    app.connect("build-finished", _check_resources)
