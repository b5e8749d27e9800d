"""Plain terms in every text, and descriptions of parameters that stand alone.

Texts are docstrings, comments, messages (string literals with a space), templates and documents.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from numpydoc.docscrape import NumpyDocString

from tests.conftest import REPOSITORY

PLACES = (
    *("storage_schemas", "presentation", "pipeline", "training", "benchmarks"),
    *("docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
)
"""Packages and documents whose texts are checked."""

WORDS: Mapping[str, str] = {
    r"judge\w*|judging": "validation, score, compare",
    r"verdicts?": "result",
    r"necks": "patients",
    r"broken|hurt": "fractured",
    r"whole (vertebra\w*|bones?|ones?)": "intact",
    r"whole or not at all": "atomically",
    r"learnt": "trained, learned",
    r"by heart": "overfits",
    r"told": "reported, described",
    r"(say|says|said) (of|about|nothing|what|who|it)": "contains, describes, predicts",
    r"rooms?|houses?": "directory, package, space",
    r"the way of": "data flow",
    r"look(s|ed) at": "read, used, inspected",
    r"(an?|the|last|raw) iterates?": "last weights",
    r"readings": "attributions",
    r"mixtures?": "interpolation (weights), ensemble (probabilities)",
    r"(gives?|given) away": "undo, offer",
    r"dealt": "divided",
    r"draws? (of|again)|of draws": "samples",
    r"(is|are|was|were|be|been) drawn( again)?": "sampled (draw is for pictures)",
    r"likewise": "repeat the description",
    r"so many": "the number itself",
    r"go(es)? on from|went on|goes on": "continue, resume, start from",
    r"comes? to": "is",
    r"those who": "patients, users",
    r"contestants?": "reader, loader",
    r"guess(es)?": "baseline",
    r"asked for": "requested, expected",
    r"what (becomes|became|would become) of": "outcome",
    r"sights?": "output, prediction",
    r"believe[sd]?": "accept, trust",
    r"(that|somebody) stands": "existing",
    r"dear(er)?": "expensive",
    r"(its|their|the) very": "the same, exactly",
}
"""Terms that texts do not use, as patterns of whole words, and what they use instead."""

ALLOWED: Mapping[str, str] = {
    "judged/": "folder of a RUN",
    "judged: ": "folder of a RUN, in a message",
    "evaluation.broken": "field of evaluation.json",
    "broken : int": "field of evaluation.json",
    "mixture of rounds": "key of evaluation.json",
    "guard_loss of the mixture": "key of the summary of boost",
    "mixture distribution": "term of statistics",
    "levels can be believed": "reason that is stored in records",
    "the deflated stream is broken": "reason that is stored in records",
    "and goes on": "reason that is stored in records",
    "of a mixture": "reason that is stored in records",
    "not the series asked for": "reason that is stored in records",
    "asked for; ": "reason that is stored in records",
}
"""Phrases that contain a forbidden word, and why they stay."""

ANY_WORD = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)
SECTIONS = ("Parameters", "Attributes", "Returns", "Yields")
ALONE = re.compile(
    r"(Of|Likewise|Theirs?|Its|Whose|The same|As|From|Those|Which|See)\b|(For|By|In) `[^`]*`\.?$"
)
"""How a description begins that means nothing without the line above it."""


def files() -> Iterator[Path]:
    for place in PLACES:
        path = REPOSITORY / place
        found = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (each for each in found if each.suffix in (".py", ".j2", ".md"))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every text of a file with its line."""
    source = path.read_text()
    if path.suffix != ".py":
        yield from enumerate(source.splitlines(), start=1)
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines = node.value.splitlines()
            if len(lines) > 1 or " " in node.value:
                yield from enumerate(lines, start=node.lineno)


def find_words(text: str) -> list[str]:
    """The forbidden words of a text, each with what to use instead."""
    for phrase in ALLOWED:
        text = text.replace(phrase, "")
    if not ANY_WORD.search(text):
        return []
    return [
        f"{found[0]!r}: use {plain}"
        for pattern, plain in WORDS.items()
        if (found := re.search(rf"\b({pattern})\b", text, re.IGNORECASE))
    ]


def find_dependent(docstring: str) -> list[str]:
    """The descriptions of a numpydoc docstring that do not stand alone."""
    document = NumpyDocString(docstring)
    entries = [entry for section in SECTIONS for entry in document[section]]
    return [text for entry in entries if ALONE.match(text := " ".join(entry.desc))]


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def test_texts_use_plain_words() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}: {word}"
        for path in files()
        for line, text in texts(path)
        for word in find_words(text)
    ]
    assert not found, "\n".join(found)


def test_every_parameter_description_stands_alone() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}: {description}"
        for path in files()
        if path.suffix == ".py"
        for docstring in docstrings(path)
        for description in find_dependent(docstring)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# the guard judges it", 1),
        ("Slices of broken vertebrae, drawn in a picture.", 1),
        ("A whole vertebra is drawn again, and the reader is told so.", 3),
        ("Written to judged/01.json.", 0),
        ("Intact vertebrae are sampled without replacement.", 0),
    ],
)
def test_words_are_found_in_a_text(text: str, words: int) -> None:
    assert len(find_words(text)) == words


@pytest.mark.parametrize(
    ("description", "alone"),
    [
        ("Of the round.", False),
        ("Likewise.", False),
        ("From `read_layout`.", False),
        ("By `GROUPS`.", False),
        ("See `Choices`.", False),
        ("Peak learning rate of the round.", True),
        ("For each scanner, the number of studies.", True),
        ("Offset in HU.", True),
    ],
)
def test_descriptions_that_do_not_stand_alone_are_found(description: str, alone: bool) -> None:
    docstring = f"Train.\n\nParameters\n----------\nrate : float\n    {description}\n"
    assert (find_dependent(docstring) == []) == alone


def test_every_text_of_a_module_is_read(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        '"""Doc\nstring."""\n\nx = 1  # a comment\nraise ValueError(f"it is {x} mm")\n'
    )
    assert {text.strip() for _, text in texts(module)} >= {"string.", "# a comment", "it is", "mm"}
