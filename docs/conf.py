"""Configuration of the documentation site; `make docs` builds it into build/docs.

Warnings are errors. Nothing is fetched while the site is built, and no page loads anything from
elsewhere when it is read: `find_remote_resources` looks at every page that was written.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # the site describes this tree, whatever is installed
PACKAGES = ("storage_schemas", "pipeline", "training", "presentation")
_SOURCE_LINK = re.compile(rf"\]\((?:\.\./)+((?:{'|'.join(PACKAGES)})(?:/\w+)*)(?:\.py|/)?\)")

project = "cspine"
author = "cspine contributors"
project_copyright = author
release = metadata.version("cspine")
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["api/generated/*/modules.rst"]
default_role = "py:obj"  # so `name` in a docstring is a link where there is such a name

apidoc_modules = [
    {"path": f"../{package}", "destination": f"api/generated/{package}"} for package in PACKAGES
]
apidoc_module_first = True
apidoc_automodule_options = {"members"}
autodoc_member_order = "bysource"
# Sphinx 9.0 else reads the docstrings of everything that a module imports, and drops them then.
autodoc_use_legacy_class_based = True
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


class _Resources(HTMLParser):
    """Collects what a page loads (scripts, styles, pictures, frames), not what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag in {"script", "img", "iframe", "source", "video", "audio", "embed"}:
            self.found += [named.get("src") or "", named.get("srcset") or ""]
        elif tag == "link":
            self.found.append(named.get("href") or "")


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
            page = _Resources()
            page.feed(file.read_text(encoding="utf-8"))
            addresses = page.found
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


def _check_resources(app: Sphinx, error: Exception | None) -> None:
    for file, address in [] if error else find_remote_resources(Path(app.outdir)):
        name = file.relative_to(app.outdir)
        logging.getLogger(__name__).warning("%s loads %s from another host", name, address)


def setup(app: Sphinx) -> None:
    """Register the links to modules and the check of the built pages."""
    app.connect("source-read", _link_modules)
    app.connect("build-finished", _check_resources)
