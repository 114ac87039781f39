"""Rows of local files, one file behind the other, from one place to another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from typing_extensions import Self

from distqat.data.rows import Row
from distqat.data.sources.file_readers import READERS, parquet_schema

LOOKED_AT = 20  # rows of JSON whose keys are taken for the columns


class FileRows:
    """Rows [start, stop) of files of one kind (`readers.READERS`) in their order; see `rows.Rows`."""

    def __init__(self, kind: str, paths: Sequence[Path], start: int = 0, stop: int | None = None) -> None:
        self._kind = kind
        self._paths = list(paths)
        self._start, self._stop = start, stop

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the first file with rows; missing ones of others are found when they are read."""
        if self._kind == "parquet":
            return tuple(parquet_schema(self._paths[0]).names)
        return tuple(dict.fromkeys(chain.from_iterable(islice(self, LOOKED_AT))))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where a parquet file brings those of a data set of the hub."""
        if self._kind != "parquet":
            return ()
        told = (parquet_schema(self._paths[0]).metadata or {}).get(b"huggingface", b"{}")
        return _class_names(told)

    @property
    def files(self) -> int:
        """How many there are."""
        return len(self._paths)

    def of_file(self, number: int) -> Self:
        """The rows of one file."""
        return type(self)(self._kind, [self._paths[number]])

    def skip(self, count: int) -> Self:
        """Without the first `count` rows."""
        return type(self)(self._kind, self._paths, self._start + count, self._stop)

    def take(self, count: int) -> Self:
        """The first `count` rows alone."""
        return type(self)(self._kind, self._paths, self._start, self._start + count)

    def __iter__(self) -> Iterator[Row]:
        read = READERS[self._kind]
        rows = chain.from_iterable(read(path) for path in self._paths)
        return islice(rows, self._start, self._stop)


def _class_names(told: bytes) -> tuple[str, ...]:
    """Of the column `label`, as the `datasets` library notes them in a schema."""
    try:
        features: Any = json.loads(told)["info"]["features"]
        names = next(f["names"] for n in ("label", "labels", "fine_label") if (f := features.get(n)))
        return tuple(map(str, names))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return ()
