"""Rows of csv files as people and programs write them: Excel, pandas, R.

Commas, semicolons or tabs; UTF-8 with or without a byte order mark, or UTF-16 with one; any end of
line; quoted cells; columns in any order, others beside them. Not here: what the columns mean
(`storage_schemas.annotations`).
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import fsspec

from storage_schemas.errors import UsageError, reason_of

UNKNOWN = frozenset({"", "nan", "na", "n/a", "<na>", "none", "null"})
"""Cells without a value, in lower case: pandas, R and SQL write these."""
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Row:
    """One row of a csv file.

    Parameters
    ----------
    url : str
        The file, for errors.
    line : int
        The row's line in the file, from 1; its last one where quoted cells span several.
    cells : dict of str to str
        The cells by column, without white space around them.
    decimal_comma : bool
        Whether numbers may have a decimal comma: not where commas part the cells.
    """

    url: str
    line: int
    cells: dict[str, str]
    decimal_comma: bool = False

    def error(self, column: str, what: str) -> UsageError:
        """Return ``csv-invalid`` with the line, the column and the cell."""
        where = f"line {self.line}, column {column}"
        return UsageError("csv-invalid", f"{where}: {self.cells[column]!r} {what}", key=self.url)

    def number(self, column: str) -> float | None:
        """Return a cell as a number, None where it has no value.

        Raises
        ------
        UsageError
            ``csv-invalid`` where the cell is no number.
        """
        text = self.cells[column]
        if text.lower() in UNKNOWN:
            return None
        if self.decimal_comma:
            text = text.replace(",", ".")
        try:
            return float(text)
        except ValueError:
            raise self.error(column, "is no number") from None


def read_rows(url: str, columns: Sequence[str]) -> Iterator[Row]:
    """Read the named columns of a csv file; empty lines are left out.

    Parameters
    ----------
    url : str
        fsspec URL of the file.
    columns : sequence of str
        Names that its first line must hold, once each.

    Raises
    ------
    UsageError
        ``source-not-found`` where the file cannot be read; ``csv-invalid`` where it is no text, a
        column is missing or named twice, or a row has more or fewer cells than the first line.
    """
    try:
        with fsspec.open(url, "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        raise UsageError("source-not-found", "no such file", key=url) from None
    except OSError as error:
        raise UsageError("source-not-found", reason_of(error), key=url) from None
    try:
        yield from _parse(url, _decode(data), columns)
    except csv.Error as error:
        raise UsageError("csv-invalid", f"no csv file: {error}", key=url) from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError("csv-invalid", f"line {line}: no UTF-8 text", key=url) from None


def _decode(data: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding)
    return data.decode("utf-8")


def _parse(url: str, text: str, columns: Sequence[str]) -> Iterator[Row]:
    delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = [name.strip() for name in next(lines, [])]
    if missing := [name for name in columns if name not in header]:
        shown = ", ".join(map(repr, header[:12])) or "nothing"
        detail = f"line 1: no column {', '.join(missing)}; it names {shown}"
        raise UsageError("csv-invalid", detail, key=url)
    if twice := [name for name in columns if header.count(name) > 1]:
        raise UsageError("csv-invalid", f"line 1: column {', '.join(twice)} twice", key=url)
    places = {name: header.index(name) for name in columns}
    for cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            detail = f"line {lines.line_num}: {len(cells)} cells, line 1 has {len(header)}"
            raise UsageError("csv-invalid", detail, key=url)
        found = {name: cells[place].strip() for name, place in places.items()}
        yield Row(url, lines.line_num, found, delimiter != ",")
