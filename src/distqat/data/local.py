"""Data sets of files on this host: `dataset_name: ./path`. No network is asked for anything.

Parquet, JSON and text files are streamed like those of the hub (`stream.py`); images, whose folders name
their classes, are read one by one in an order over all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, overload

from distqat.data.embedded import HELDOUT_SHARE, SPLIT_SEED, EmbeddedSource
from distqat.data.local_files import IMAGES, TRAIN, LocalFiles, find_files
from distqat.data.options import DataOptions
from distqat.data.order import permutation
from distqat.data.source import Source
from distqat.data.stream import (
    HELDOUT_SAMPLES,
    HELDOUT_SPLITS,
    SampleStream,
    Split,
    encoded,
    heldout_split,
    quiet_datasets,
)
from distqat.errors import DataError
from distqat.tasks.base import Sample

PEEK = int(HELDOUT_SAMPLES / HELDOUT_SHARE)  # from this many samples on, HELDOUT_SAMPLES are held out


def open_local(options: DataOptions, *, seed: int) -> Source:
    """The files at `dataset_name`; `dataset_split` is one of their splits, `train` where they name none.

    A validation or test split is held out; without one, a fifth of the samples, at most 1,000.
    Raises DataError.
    """
    if options.dataset_config is not None:
        raise DataError(
            f"data.dataset_config: files have no configurations; name the path {options.dataset_name!r}"
        )
    files = find_files(options.dataset_name)
    train = options.dataset_split
    if train not in files.splits:
        known = ", ".join(sorted(files.splits))
        raise DataError(f"{options.dataset_name!r} has no split {train!r}; known: {known}")
    if files.kind == IMAGES:
        return _images(options, files, seed)
    return _stream(options, files, seed)


def _order(files: LocalFiles, split: str) -> str:
    return f"{files.root.name}/{split}@{files.fingerprint}"


class ImageFiles(Sequence[Sample]):
    """Images as {"image": {"bytes"}, "label"}: a file is read when its sample is asked for."""

    def __init__(self, files: Sequence[tuple[Path, int]]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> ImageFiles: ...
    def __getitem__(self, at: int | slice) -> Sample | ImageFiles:
        if isinstance(at, slice):
            return ImageFiles(self._files[at])
        path, label = self._files[at]
        try:
            return {"image": {"bytes": path.read_bytes()}, "label": label}
        except OSError as error:
            raise DataError(f"the image {path} cannot be read: {error.strerror}") from error


def _images(options: DataOptions, files: LocalFiles, seed: int) -> EmbeddedSource:
    """Classes are the names of the folders that hold images, sorted, the same for all splits."""
    names = sorted({file.parent.name for split in files.splits.values() for file in split})
    loose = [file for split in files.splits.values() for file in split if _is_loose(file, files)]
    if loose:
        raise DataError(
            f"the image {loose[0]} lies in no folder that names its class: expected ./CLASS/NAME.png"
        )
    numbers = {name: number for number, name in enumerate(names)}
    splits = {
        split: [(file, numbers[file.parent.name]) for file in of_split]
        for split, of_split in files.splits.items()
    }
    train = splits[options.dataset_split]
    held = heldout_split(splits, options.dataset_split)
    if held is not None:
        heldout = splits[held]
    else:
        mixed = permutation(SPLIT_SEED, 0, 0, len(train))
        cut = min(int(len(train) * HELDOUT_SHARE), HELDOUT_SAMPLES)
        heldout, train = [train[i] for i in mixed[:cut]], [train[i] for i in sorted(mixed[cut:])]
    if not heldout:
        raise DataError(_too_few(options.dataset_name, len(train)))
    name = f"{_order(files, options.dataset_split)} classes={len(names)}"
    return EmbeddedSource(name, ImageFiles(train), ImageFiles(heldout), seed=seed, classes=names)


def _is_loose(file: Path, files: LocalFiles) -> bool:
    place = file.relative_to(files.root).parts if file != files.root else ()
    return len(place) < 2 or (len(place) == 2 and place[0] in (TRAIN, *HELDOUT_SPLITS))


def _stream(options: DataOptions, files: LocalFiles, seed: int) -> SampleStream:
    datasets = quiet_datasets()
    texts = {split: [str(file.resolve()) for file in of_split] for split, of_split in files.splits.items()}
    extra = {"sample_by": "paragraph"} if files.kind == "text" else {}  # an empty line ends a document
    read = partial(_readable, options.dataset_name)
    with _reading(options.dataset_name):
        splits = datasets.load_dataset(files.kind, data_files=texts, streaming=True, **extra)
    train = encoded(splits[options.dataset_split])
    held = heldout_split(splits, options.dataset_split)
    split = Split(
        options.dataset_name,
        _order(files, options.dataset_split),
        train,
        None if held is None else encoded(splits[held]),
        read,
        0 if held is not None else _held_back(options.dataset_name, read(train)),
    )
    return SampleStream(options, split, seed=seed)


def _held_back(name: str, rows: Iterable[Sample]) -> int:
    """How many of the first samples are held out: a small set must keep most of its samples."""
    count = sum(1 for _ in islice(rows, PEEK))
    held = int(count * HELDOUT_SHARE)
    if held == 0:
        raise DataError(_too_few(name, count))
    return held


def _too_few(name: str, count: int) -> str:
    return (
        f"{name!r} has {count} samples, too few to hold some of them out: "
        "add some, or a folder or file named validation or test (in text files an empty line ends a sample)"
    )


def _readable(name: str, rows: Iterable[Any]) -> Iterator[Sample]:
    with _reading(name):
        yield from rows


@contextmanager
def _reading(name: str) -> Iterator[None]:
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ValueError, TypeError, DatasetsError) as error:  # pyarrow's and json's are ValueErrors
        cause = error.__cause__ or error
        raise DataError(f"data set {name!r} cannot be read: {' '.join(str(cause).split())[:300]}") from error
