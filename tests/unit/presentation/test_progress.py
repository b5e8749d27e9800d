"""Progress and summaries without a terminal."""

import argparse
import json
from typing import Any

import pytest

from presentation.commandline import tell_summary
from presentation.progress import StageProgress

Captured = pytest.CaptureFixture[str]


def events(captured: Captured) -> list[dict[str, Any]]:
    output = captured.readouterr()
    assert output.out == ""
    lines = [json.loads(line) for line in output.err.splitlines()]
    for line in lines:
        assert line.pop("seconds") >= 0
    return lines


def test_only_items_with_an_event_have_a_line(capsys: Captured) -> None:
    with StageProgress("run", 3, "studies") as progress:
        progress.advance()
        progress.advance("for a terminal", study="1.2.3")
        progress.finish()
    assert events(capsys) == [
        {"stage": "run", "done": 2, "total": 3, "study": "1.2.3"},
        {"stage": "run", "done": 2, "unit": "studies"},
    ]


def test_items_are_counted_from_the_number_reached(capsys: Captured) -> None:
    with StageProgress("train", 9, "steps") as progress:
        progress.reach(5, 9, "loss 0.5", loss=0.5)
        progress.advance(loss=0.4)
    assert events(capsys) == [
        {"stage": "train", "done": 5, "total": 9, "loss": 0.5},
        {"stage": "train", "done": 6, "total": 9, "loss": 0.4},
    ]


def test_a_summary_is_a_table_with_the_files_or_one_json_object(capsys: Captured) -> None:
    rows: list[tuple[str, object]] = [("bytes_out", 12345), ("worst", ["a", "b"])]
    made = {"a_page": "r.html"}
    tell_summary("report", rows, argparse.Namespace(json=False), made)
    table = capsys.readouterr().out.splitlines()
    assert table[0].strip() == "report"
    assert any("bytes out" in line and "12,345" in line for line in table)
    assert any("a; b" in line for line in table)
    assert table[-1] == "a page: r.html"
    tell_summary("report", rows, argparse.Namespace(json=True), made)
    assert json.loads(capsys.readouterr().out) == {
        "stage": "report", "bytes_out": 12345, "worst": ["a", "b"], "a_page": "r.html",
    }  # fmt: skip
