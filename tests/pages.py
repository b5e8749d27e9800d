"""Pages in a real browser, for the tests of all reports."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page


def opened(chromium: Browser, path: Path, **settings: Any) -> Iterator[Page]:
    """A page that must neither complain nor ask for anything beyond its own file."""
    context = chromium.new_context(**settings)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]


def table(page: Page, caption: str) -> list[list[str]]:
    """The cells of a table's body, by its caption."""
    rows = page.locator("table", has=page.locator("caption", has_text=caption)).locator("tbody tr")
    return [row.locator("td").all_inner_texts() for row in rows.all()]


def brightness(colour: str) -> float:
    """Of a computed colour, 0 to 255."""
    return float(np.mean([int(part) for part in colour.strip("rgb()").split(",")]))
