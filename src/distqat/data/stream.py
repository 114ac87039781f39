"""Samples that are read from their beginning in every epoch: files of the hub, or of this host."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from distqat.data.documents import text_column
from distqat.data.options import DataOptions
from distqat.data.order import permutation
from distqat.data.packing import Packing
from distqat.data.source import Item, parse_place
from distqat.data.tokenizer import open_tokenizer
from distqat.errors import DataError
from distqat.tasks.base import Sample
from distqat.tasks.options import parse_options
from distqat.tasks.text_options import TextOptions

if TYPE_CHECKING:
    from distqat.data.utterances import Utterances

LANGUAGE_TASKS = ("llm", "nlp")
SPEECH_TASK = "speech"
HELDOUT_SPLITS = ("validation", "test", "valid", "val", "dev")  # a hub test split often has no labels
HELDOUT_SAMPLES = 1000  # taken from the start of the stream where there is no such split
FILES = -1  # the place of the order of files among the blocks of samples, which count from 0


@dataclass(frozen=True)
class Split:
    """What a stream reads: `train` and `heldout` are streaming data sets of the `datasets` library."""

    name: str
    """Of the data set, for messages."""
    order: str
    """Split and contents, so that a position of other contents is not taken for one of these."""
    train: Any
    heldout: Any | None
    """None: the first `held_back` samples of `train` are held out and not trained on."""
    read: Callable[[Iterable[Sample]], Iterator[Sample]]
    """Passes samples on, with what goes wrong meanwhile as a DataError."""
    held_back: int = HELDOUT_SAMPLES
    document_start: str | None = None
    """Where rows are lines: what the first one of a document looks like."""


class SampleStream:
    """A split in blocks of `shuffle_buffer` samples, each permuted by (seed, epoch, block).

    Text of a language model is packed into sequences, which are the samples then; of recordings, those that
    are too long are left out. Files are taken in an
    order that depends on (seed, epoch) too. So a position is two integers, and going to one reads (and
    drops) what lies before it in the epoch.
    """

    def __init__(self, options: DataOptions, split: Split, *, seed: int) -> None:
        self.name = split.name
        self.seed = seed
        self._packing = _packing(options, split)
        self._split = split
        self._split_name = options.dataset_split
        self._buffer = options.shuffle_buffer
        self._epoch = 0
        self._index = 0
        self._rows: Iterator[Sample] | None = None
        self._block: list[Sample] = []  # what is left of the block at `_index`, last one first

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the label column, where the data set declares them."""
        from distqat.tasks.cv import LABEL_COLUMNS

        features = getattr(self._split.train, "features", None) or {}
        labels = (getattr(features.get(name), "names", None) for name in LABEL_COLUMNS)
        return tuple(next((names for names in labels if names), ()))

    @property
    def order(self) -> str:
        packing = "" if self._packing is None else f" {self._packing}"
        return f"{self._split.order} seed={self.seed} buffer={self._buffer}{packing}"

    def take(self, count: int) -> list[Item]:
        if not self._block:
            self._next_block()
        got = [self._block.pop() for _ in range(min(count, len(self._block)))]
        items = [Item(self._epoch, self._index + i, sample) for i, sample in enumerate(got)]
        self._index += len(items)
        return items

    def state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "index": self._index}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._index = parse_place(state)
        self._rows, self._block = None, []

    def heldout(self) -> Iterable[Sample]:
        """The validation or test split; without one, the first samples, which are not trained on.

        Of packed text at most 1,000 sequences, of recordings as many.
        """
        split = self._split
        dataset = split.train.take(split.held_back) if split.heldout is None else split.heldout
        rows = split.read(dataset)
        return rows if self._packing is None else islice(self._packing(rows), HELDOUT_SAMPLES)

    def _next_block(self) -> None:
        """Read the block that holds `_index`, opening the stream or the next epoch where needed."""
        rows = self._rows
        self._rows = None  # a stream that failed cannot go on: the next call opens it anew
        block, offset = divmod(self._index, self._buffer)
        if rows is None:
            rows = self._open_epoch(skip=block * self._buffer)
        samples = list(islice(rows, self._buffer))
        if len(samples) <= offset:
            if self._index == 0:
                raise DataError(
                    f"split {self._split_name!r} of data set {self.name!r} has no training samples"
                )
            self._epoch, self._index = self._epoch + 1, 0
            return self._next_block()
        order = permutation(self.seed, self._epoch, block, len(samples))
        self._block = [samples[i] for i in reversed(order[offset:])]
        self._rows = rows
        return None

    def _open_epoch(self, *, skip: int) -> Iterator[Sample]:
        split = self._split
        if split.heldout is None:
            rows = split.read(split.train.skip(split.held_back))
        else:
            files = permutation(self.seed, self._epoch, FILES, split.train.num_shards)
            parts = (split.train.shard(num_shards=len(files), index=i) for i in files)
            rows = split.read(chain.from_iterable(parts))
        if self._packing is not None:  # so blocks and positions count sequences
            rows = self._packing(rows)
        return islice(rows, skip, None) if skip else rows


def heldout_split(splits: Iterable[str], train: str) -> str | None:
    """The split that is held out when `train` is trained on."""
    there = set(splits) - {train}
    return next((name for name in HELDOUT_SPLITS if name in there), None)


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


def _packing(options: DataOptions, split: Split) -> Packing | Utterances | None:
    """What makes samples of rows: text is packed, recordings are sifted. DataError for what lacks them."""
    if options.task_type == SPEECH_TASK:
        from distqat.data.utterances import Utterances

        utterances = Utterances(options)
        utterances.check(split.read(split.train))
        return utterances
    if options.task_type not in LANGUAGE_TASKS:
        return None
    text = parse_options(TextOptions, options.options, "llm")
    if text.document_start is None and split.document_start is not None:
        text = text.model_copy(update={"document_start": split.document_start})
    for part in (split.train, split.heldout):
        if part is not None and part.features:  # unknown where the files do not say
            text_column(part.features, text.text_column)
    return Packing(open_tokenizer(options.tokenizer), options.sequence_length, text)
