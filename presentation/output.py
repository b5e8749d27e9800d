"""Write the output files of commands: pages, tables and documents."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from storage_schemas.errors import UsageError, reason_of


def write_output(path: Path, text: str) -> int:
    """Write a file in UTF-8, and create its folder if it does not exist.

    Parameters
    ----------
    path : Path
        File to write or replace.
    text : str
        Content of the file; line ends are not changed.

    Returns
    -------
    int
        Size of the file in bytes.

    Raises
    ------
    UsageError
        ``config-invalid`` with the reason where the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.write_bytes(text.encode())
    except OSError as error:
        reason = f"cannot be written: {reason_of(error)}"
        raise UsageError("config-invalid", reason, key=str(path)) from None


def csv_text(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Format a csv table with commas, minimal quoting and LF line ends.

    Parameters
    ----------
    header : iterable of str
        Names of the columns.
    rows : iterable of iterable
        Values of each row.
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return table.getvalue()
