"""Read the table of the series to use for single studies."""

import csv
import io
import re

from storage_schemas.errors import UsageError, reason_of
from storage_schemas.objects import ObjectFolder

_COLUMNS = ("study", "series")


def read_series_table(url: str) -> dict[str, str]:
    """Read a csv with the columns ``study`` and ``series``.

    Parameters
    ----------
    url : str
        File, or any fsspec URL.

    Returns
    -------
    dict of str to str
        Series of each study: a SeriesInstanceUID, a SeriesNumber, or a regular expression, as for
        ``--series``.

    Raises
    ------
    UsageError
        ``source-not-found`` where the file cannot be read, ``csv-invalid`` where a column or a
        value is missing, a study has two rows, or a series is no regular expression.
    """
    try:
        text = ObjectFolder(url).get("").decode("utf-8-sig")
    except OSError as error:
        raise UsageError("source-not-found", reason_of(error), key=url) from None
    except UnicodeDecodeError:
        raise UsageError("csv-invalid", "the file is no UTF-8 text", key=url) from None
    rows = csv.DictReader(io.StringIO(text))
    if missing := [name for name in _COLUMNS if name not in (rows.fieldnames or ())]:
        raise UsageError("csv-invalid", f"no column {missing[0]}", key=url)
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        study, series = ((row[name] or "").strip() for name in _COLUMNS)
        if not study or not series:
            raise UsageError("csv-invalid", f"line {number}: a value is missing", key=url)
        if study in found:
            raise UsageError("csv-invalid", f"line {number}: study {study} twice", key=url)
        try:
            re.compile(series)
        except re.error as error:
            why = f"line {number}: {series}: no regular expression: {error}"
            raise UsageError("csv-invalid", why, key=url) from None
        found[study] = series
    return found
