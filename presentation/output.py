"""Files that a command was asked to write: pages, tables, documents."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from storage_schemas.errors import UsageError, reason_of


def write_output(path: Path, text: str) -> int:
    """Write a file in UTF-8; its folder is made where it is missing.

    Parameters
    ----------
    path : Path
        The file; what is there is replaced.
    text : str
        The content of the file; line ends stay as they are.

    Returns
    -------
    int
        The size of the file in bytes.

    Raises
    ------
    UsageError
        ``config-invalid`` where it cannot be written, with the system's reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.write_bytes(text.encode())
    except OSError as error:
        reason = f"cannot be written: {reason_of(error)}"
        raise UsageError("config-invalid", reason, key=str(path)) from None


def csv_text(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a csv table as text: commas, fields quoted where they must be, LF line ends."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return table.getvalue()
