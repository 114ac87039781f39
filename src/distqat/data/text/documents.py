"""Rows of a data set to documents of text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from distqat.data.rows import LeftOut, at, origin_of
from distqat.errors import DataError
from distqat.tasks.base import Sample
from distqat.tasks.text_options import TextOptions

TEXT_COLUMNS = ("text", "content", "sentence")
NULL = "with null in place of text"
MARK = "\ufeff"
"""Of files in UTF-8 that some programs write; no part of the text."""
ARTICLE = r" = [^=]+ = \s*$"
"""A title in WikiText, whose rows are lines; its sections have ` = = Name = = `."""


def documents(rows: Iterable[Sample], options: TextOptions, left_out: LeftOut | None = None) -> Iterator[str]:
    """The texts of rows, or of runs of rows that `document_start` tells apart.

    Rows whose text is empty or null are left out, and counted in `left_out`; where rows are lines an empty
    one is part of the document. Raises DataError for a row without the column, or with no text in it.
    """
    account = LeftOut() if left_out is None else left_out
    if options.document_start is None:
        for row in rows:
            text = text_of(row, options.text_column)
            if text:
                yield text
            else:
                account.leave(NULL if text is None else "with an empty text", origin_of(row))
        return
    starts = re.compile(options.document_start)
    lines: list[str] = []
    for row in rows:
        text = text_of(row, options.text_column)
        if text is None:
            account.leave(NULL, origin_of(row))
            continue
        if starts.match(text) and lines:
            yield "".join(lines)
            lines.clear()
        if text:
            lines.append(text if text.endswith("\n") else f"{text}\n")
    if lines:
        yield "".join(lines)


def text_of(row: Mapping[str, Any], column: str | None = None) -> str | None:
    """The text of a row without a byte order mark, None where it is null; DataError where there is none."""
    try:
        text = row[text_column(row, column)]
    except DataError as error:
        raise DataError(f"{at(row)}{error}") from None
    if text is None:
        return None
    if not isinstance(text, str):
        kind = type(text).__name__
        raise DataError(f"{at(row)}a row has {kind} where its text should be: {dict(row)!r:.200}")
    return text.removeprefix(MARK)


def text_column(columns: Iterable[str], wanted: str | None = None) -> str:
    """The column that holds text, whatever the case of its name. Raises DataError."""
    there = list(columns)
    for name in (wanted,) if wanted else TEXT_COLUMNS:
        for column in there:
            if column.lower() == name.lower():
                return column
    expected = repr(wanted) if wanted else " or ".join(TEXT_COLUMNS)
    found = ", ".join(sorted(there)) or "none"
    raise DataError(
        f"the data has no text: expected a column {expected}, found: {found}; "
        "name it in data.options.text_column"
    )
