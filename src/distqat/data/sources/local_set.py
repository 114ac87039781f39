"""Data sets of files on this host: `dataset_name: ./path`. No network is asked for anything.

Parquet, JSON and text files are streamed like those of the hub (`sample_stream.py`); images, whose folders
name their classes, are read one by one in an order over all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import overload

from distqat.data.embedded import HELDOUT_SHARE, SPLIT_SEED, EmbeddedSource
from distqat.data.options import DataOptions
from distqat.data.order import permutation
from distqat.data.rows import Row
from distqat.data.source import Source
from distqat.data.sources.file_rows import FileRows
from distqat.data.sources.local_files import IMAGES, LocalFiles, class_of, find_files, split_name
from distqat.data.sources.sample_stream import HELDOUT_SAMPLES, SampleStream, SplitOptions, heldout_split
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
    train = split_name(options.dataset_split)
    if train not in files.splits:
        known = ", ".join(sorted(files.splits))
        raise DataError(f"{options.dataset_name!r} has no split {options.dataset_split!r}; known: {known}")
    if files.kind == IMAGES:
        return _images(options, files, train, seed)
    return _stream(options, files, train, seed)


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
            return Row({"image": {"bytes": path.read_bytes()}, "label": label}, str(path))
        except OSError as error:
            raise DataError(f"the image {path} cannot be read: {error.strerror}") from error


def _images(options: DataOptions, files: LocalFiles, split: str, seed: int) -> EmbeddedSource:
    """Classes are the names of the folders that hold images, sorted, the same for all splits."""
    classes = {file: _class(file, files) for of_split in files.splits.values() for file in of_split}
    empty = [file for file in classes if file.stat().st_size == 0]
    if empty:
        others = f", and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise DataError(f"the image {empty[0]} is empty (0 bytes){others}: copy it anew, or remove it")
    names = sorted(set(classes.values()))
    numbers = {name: number for number, name in enumerate(names)}
    splits = {
        name: [(file, numbers[classes[file]]) for file in of_split] for name, of_split in files.splits.items()
    }
    train = splits[split]
    held = heldout_split(splits, split)
    if held is not None:
        heldout = splits[held]
    else:
        mixed = permutation(SPLIT_SEED, 0, 0, len(train))
        cut = min(int(len(train) * HELDOUT_SHARE), HELDOUT_SAMPLES)
        heldout, train = [train[i] for i in mixed[:cut]], [train[i] for i in sorted(mixed[cut:])]
    if not heldout:
        raise DataError(_too_few(options.dataset_name, len(train)))
    name = f"{_order(files, split)} classes={len(names)}"
    source = EmbeddedSource(name, ImageFiles(train), ImageFiles(heldout), seed=seed, classes=names)
    source.left_out = (files.left_out,)
    return source


def _class(file: Path, files: LocalFiles) -> str:
    name = class_of(file.relative_to(files.root)) if file != files.root else None
    if name is None:
        raise DataError(f"the image {file} lies in no folder that names its class: expected ./CLASS/NAME.png")
    return name


def _stream(options: DataOptions, files: LocalFiles, split: str, seed: int) -> SampleStream:
    rows = {name: FileRows(files.kind, of_split) for name, of_split in files.splits.items()}
    train, held = rows[split], heldout_split(rows, split)
    parts = SplitOptions(
        options.dataset_name,
        _order(files, split),
        train,
        None if held is None else rows[held],
        0 if held is not None else _held_back(options.dataset_name, train),
        files=files.left_out,
    )
    return SampleStream(options, parts, seed=seed)


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
