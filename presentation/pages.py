"""Jinja environment of all HTML pages: layout, style sheet and number formats.

A page is one self-contained file. ``templates/page.html.j2`` is its layout and
``templates/style.css`` its style; the packages extend them with templates of their own.
"""

import base64
from typing import Literal

import jinja2

_UNITS = ("B", "kB", "MB", "GB", "TB")


def page_templates(package: str) -> jinja2.Environment:
    """Return the Jinja environment of a package, whose templates may extend those of this one.

    Parameters
    ----------
    package : str
        Package that has ``report/templates``.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(f"{package}.report"), jinja2.PackageLoader("presentation")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": lambda n: f"{n:,}",
        "bytes": format_bytes,
        "time": format_duration,
    }
    return environment


def data_url(data: bytes, form: Literal["jpeg", "png"]) -> str:
    """Return a picture's file as the URL of an ``<img>``, so that a page refers to no file."""
    return f"data:image/{form};base64,{base64.b64encode(data).decode()}"


def format_bytes(size: float) -> str:
    """Format a number of bytes with a decimal unit, such as ``1.5 GB``."""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"


def format_duration(seconds: float) -> str:
    """Format a duration, such as ``12 min 05 s``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
