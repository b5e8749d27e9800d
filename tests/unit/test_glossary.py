"""The glossary defines each term once, in alphabetical order."""

import re

from tests.conftest import REPOSITORY

SECTIONS = (REPOSITORY / "docs/glossary.md").read_text().split("\n## ")[1:]


def terms(section: str) -> list[str]:
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", section, re.MULTILINE)
    return [row.strip("`").lower() for row in rows if row not in ("term", "---")]


def test_terms_are_in_alphabetical_order() -> None:
    assert len(SECTIONS) == 3
    for section in SECTIONS:
        assert len(terms(section)) > 10
        assert terms(section) == sorted(terms(section))


def test_no_term_is_defined_twice() -> None:
    every = [term for section in SECTIONS for term in terms(section)]
    assert [term for term in every if every.count(term) > 1] == []
