"""Rows of a data set of the hub, streamed by the `datasets` library."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from typing_extensions import Self

from distqat.data.rows import Row


class HubRows:
    """Rows of a streaming data set; see `rows.Rows`.

    `unreachable` makes the error to raise where the network fails.
    """

    def __init__(self, dataset: Any, name: str, unreachable: Callable[[], Exception], first: int = 0) -> None:
        """`name`: of the split, or of one of its files; `first`: the number of the first row in it."""
        self._dataset = dataset
        self._name = name
        self._unreachable = unreachable
        self._first = first

    @property
    def columns(self) -> tuple[str, ...]:
        """Where the files say them."""
        return tuple(self._dataset.features or ())

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of a column of labels, where the data set brings them."""
        features = self._dataset.features or {}
        found = (getattr(features.get(name), "names", None) for name in ("label", "labels", "fine_label"))
        return next((tuple(map(str, names)) for names in found if names), ())

    @property
    def files(self) -> int:
        """Parts that can be read one without the other."""
        return int(self._dataset.num_shards)

    def of_file(self, number: int) -> Self:
        """The rows of one of them."""
        part = self._dataset.shard(num_shards=self.files, index=number)
        return type(self)(part, f"{self._name}, file {number}", self._unreachable)

    def skip(self, count: int) -> Self:
        """Without the first `count` rows."""
        return type(self)(self._dataset.skip(count), self._name, self._unreachable, self._first + count)

    def take(self, count: int) -> Self:
        """The first `count` rows alone."""
        return type(self)(self._dataset.take(count), self._name, self._unreachable, self._first)

    def __iter__(self) -> Iterator[Row]:
        try:
            for number, fields in enumerate(self._dataset, self._first):
                yield Row(fields, f"{self._name}, row {number} (from 0)")
        except network_errors() as error:
            raise self._unreachable() from error


def network_errors() -> tuple[type[BaseException], ...]:
    """What the hub's HTTP library (which one varies by version) raises when a server cannot be reached."""
    modules = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return (OSError, *(module.TransportError for module in modules))


def quiet_datasets() -> Any:
    """The `datasets` library, told to report nothing to anybody and to draw no progress bars."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # a second protocol with its own servers
    import datasets

    datasets.disable_progress_bars()
    return datasets


def encoded(dataset: Any) -> Any:
    """Leave images and recordings as the bytes of their files: the task decodes them, in its own threads."""
    import datasets

    for column, feature in (dataset.features or {}).items():
        for kind in (datasets.Image, datasets.Audio):
            if isinstance(feature, kind):
                dataset = dataset.cast_column(column, kind(decode=False))
    return dataset
