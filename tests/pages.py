"""Open HTML reports in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page


def opened(chromium: Browser, path: Path, **settings: Any) -> Iterator[Page]:
    """Open a page, and check that it logs nothing and requests nothing but its own file."""
    context = chromium.new_context(**settings)
    page = context.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: messages.append(f"dialog {dialog.message}"))
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert messages == []
    assert [url for url in requested if not url.startswith("data:")] == [path.as_uri()]


def table(page: Page, caption: str) -> list[list[str]]:
    """Cells of the body of the table with a caption."""
    rows = page.locator("table", has=page.locator("caption", has_text=caption)).locator("tbody tr")
    return [row.locator("td").all_inner_texts() for row in rows.all()]


def fits(page: Page, width: int) -> bool:
    """Whether a page with all its details open is as wide as its window."""
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    return bool(page.evaluate("document.documentElement.scrollWidth") == width)


def check_contrast(page: Page, scheme: str) -> None:
    """Check that a page is light or dark, and that its text and its plots' text stand out."""
    paper, ink = page.evaluate(
        "(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))"
    )
    plot = page.locator(".plot svg text").first.evaluate("t => getComputedStyle(t).fill")
    assert (brightness(paper) > 128) == (scheme == "light")
    for colour in (ink, plot):
        assert abs(brightness(colour) - brightness(paper)) > 150


def brightness(colour: str) -> float:
    """Mean of the channels of a computed CSS colour, 0 to 255."""
    return float(np.mean([int(part) for part in colour.strip("rgb()").split(",")]))
