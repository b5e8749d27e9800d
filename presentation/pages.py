"""What all HTML pages share: one frame, one style sheet, numbers for people.

A page is one file that refers to nothing outside of it. Its frame is ``templates/page.html.j2``,
its look ``templates/style.css``; each package has templates of its own that fill them.
"""

import jinja2

_UNITS = ("B", "kB", "MB", "GB", "TB")


def page_templates(package: str) -> jinja2.Environment:
    """The templates of a package, which may extend and include those here."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(f"{package}.report"), jinja2.PackageLoader("presentation")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": lambda n: f"{n:,}", "bytes": bytes_told, "time": time_told}
    return environment


def bytes_told(size: float) -> str:
    """A number of bytes for people, in decimal units."""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"


def time_told(seconds: float) -> str:
    """A duration for people."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
