"""One file to rows: parquet, JSON and text, read here, so that every row knows its place in the file."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distqat.data.rows import Row
from distqat.data.sources.json_rows import json_rows
from distqat.errors import DataError

BATCH = 64  # rows that are decoded at a time; a row may hold an image
TEXT = "text"
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Encodings that a file begins with the mark of; without one it is UTF-8."""


def parquet_rows(path: Path) -> Iterator[Row]:
    """Every row with all its columns. Raises DataError."""
    import pyarrow as pa

    number = 0
    try:
        with _opened_parquet(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for fields in batch.to_pylist():
                    yield Row(fields, f"{path}, row {number} (from 0)")
                    number += 1
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def parquet_schema(path: Path) -> Any:
    """pyarrow's schema of a parquet file. Raises DataError."""
    import pyarrow as pa

    try:
        with _opened_parquet(path) as file:
            return file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def object_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSON or JSON Lines file. Raises DataError."""
    return json_rows(path, encoding_of(path))


def text_rows(path: Path) -> Iterator[Row]:
    """Documents: what stands between empty lines, as {"text"}. Raises DataError."""
    lines: list[str] = []
    began = 1
    number = 0
    for number, line in enumerate(text_lines(path), 1):
        if line.strip():
            began = began if lines else number
            lines.append(line)
        elif lines:
            yield _document(path, lines, began)
            lines = []
    if lines:
        yield _document(path, lines, began)


def text_lines(path: Path) -> Iterator[str]:
    """Lines that end in newlines. DataError for what is not text in UTF-8, or in UTF-16 with its mark."""
    encoding = encoding_of(path)
    try:
        with path.open(encoding=encoding) as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise DataError(
                        f"{path} holds zero bytes (line {number}): it is not text, or UTF-16 without its "
                        f"mark; convert it to UTF-8: iconv -f UTF-16LE -t UTF-8 {path.name}"
                    )
                yield line
    except UnicodeDecodeError as error:
        line_number, byte = _first_undecodable(path, encoding)
        raise DataError(
            f"{path} is not in UTF-8 (line {line_number}{byte}): convert it, "
            f"for example with iconv -f LATIN1 -t UTF-8 {path.name}"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def encoding_of(path: Path) -> str:
    """By the mark at the beginning of a file, which is not part of its text. Raises DataError."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise _unreadable(path, error) from error
    return next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8")


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "parquet": parquet_rows,
    "json": object_rows,
    TEXT: text_rows,
}
"""By the kind of `local_files.KINDS`."""


def _document(path: Path, lines: list[str], began: int) -> Row:
    return Row({"text": "".join(lines).removesuffix("\n")}, f"{path}, line {began}")


def _opened_parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path)


def _first_undecodable(path: Path, encoding: str) -> tuple[int, str]:
    """The line, from 1, and the byte, for the message."""
    if encoding != "utf-16":
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    return number, f", byte 0x{line[error.start]:02x}"
    return 1, ""


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}")
