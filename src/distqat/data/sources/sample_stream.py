"""Samples that are read from their beginning in every epoch: files of the hub, or of this host."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from distqat.data.options import DataOptions
from distqat.data.order import permutation
from distqat.data.rows import LeftOut, Rows
from distqat.data.source import Item, parse_place
from distqat.data.text.documents import text_column
from distqat.data.text.open_tokenizer import open_tokenizer
from distqat.data.text.packing import Packing
from distqat.errors import DataError
from distqat.tasks.base import Sample
from distqat.tasks.options import parse_options
from distqat.tasks.text_options import TextOptions

if TYPE_CHECKING:
    from distqat.data.sources.utterances import Utterances

log = logging.getLogger(__name__)

LANGUAGE_TASKS = ("llm", "nlp")
SPEECH_TASK = "speech"
HELDOUT_SPLITS = ("validation", "test", "valid", "val", "dev")  # a hub test split often has no labels
HELDOUT_SAMPLES = 1000  # taken from the start of the stream without such a split
FILES = -1  # the place of the order of files among the blocks of samples, which count from 0


@dataclass(frozen=True)
class SplitOptions:
    """What a stream reads."""

    name: str
    """Of the data set, for messages."""
    order: str
    """Split and contents, so that a position of other contents is not taken for one of these."""
    train: Rows
    heldout: Rows | None
    """None: the first `held_back` samples of `train` are held out and not trained on."""
    held_back: int = HELDOUT_SAMPLES
    document_start: str | None = None
    """Where rows are lines: what the first one of a document looks like."""
    files: LeftOut | None = None
    """Files that are not read."""


class SampleStream:
    """A split in blocks of `shuffle_buffer` samples, each permuted by (seed, epoch, block).

    Text of a language model is packed into sequences, which are the samples then; of recordings, those that
    are too long are left out. Files are taken in an
    order that depends on (seed, epoch) too. So a position is two integers, and going to one reads (and
    drops) what lies before it in the epoch.
    """

    def __init__(self, options: DataOptions, split: SplitOptions, *, seed: int) -> None:
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
        self._account = LeftOut()  # of the pass that is under way
        self._whole: LeftOut | None = None  # of the last pass that came to its end
        self._told: set[str] = set()

    @property
    def order(self) -> str:
        """Split, seed, size of the blocks and, for text, the packing."""
        packing = "" if self._packing is None else f" {self._packing}"
        return f"{self._split.order} seed={self.seed} buffer={self._buffer}{packing}"

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Files that are not read, and rows that were left out: of an epoch, or of its part read so far."""
        of_files = () if self._split.files is None else (self._split.files,)
        return (*of_files, self._whole or self._account)

    @property
    def complete(self) -> bool:
        """Whether an epoch was read to its end."""
        return self._whole is not None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where the data set brings them."""
        return self._split.train.classes

    def take(self, count: int) -> list[Item]:
        """The next 1 to `count` samples, all of one block."""
        if not self._block:
            self._next_block()
        got = [self._block.pop() for _ in range(min(count, len(self._block)))]
        items = [Item(self._epoch, self._index + i, sample) for i, sample in enumerate(got)]
        self._index += len(items)
        return items

    def state(self) -> dict[str, int]:
        """`{"epoch", "index"}` of the next sample."""
        return {"epoch": self._epoch, "index": self._index}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position; what lies before it in the epoch is read and dropped at the next `take`."""
        self._epoch, self._index = parse_place(state)
        self._rows, self._block = None, []

    def heldout(self) -> Iterable[Sample]:
        """The validation or test split; without one, the first samples, which are not trained on.

        Of packed text at most 1,000 sequences, of recordings as many.
        """
        split, account = self._split, LeftOut()
        rows: Rows = split.train.take(split.held_back) if split.heldout is None else split.heldout
        samples = self._samples(rows, account)
        yield from samples if self._packing is None else islice(samples, HELDOUT_SAMPLES)
        self._tell(f"the held-out part of {self.name!r}: {account}")

    def _next_block(self) -> None:
        """Read the block that holds `_index`, opening the stream or the next epoch where needed."""
        rows = self._rows
        self._rows = None  # a stream that failed cannot go on: the next call opens it anew
        block, offset = divmod(self._index, self._buffer)
        if rows is None:
            rows = self._open_epoch(skip=block * self._buffer)
        samples = list(islice(rows, self._buffer))
        if len(samples) < self._buffer:
            self._whole = self._account
            self._tell(f"all of split {self._split_name!r} of {self.name!r}: {self._account}")
        if len(samples) <= offset:
            if self._index == 0:
                raise DataError(self._nothing())
            self._epoch, self._index = self._epoch + 1, 0
            return self._next_block()
        order = permutation(self.seed, self._epoch, block, len(samples))
        self._block = [samples[i] for i in reversed(order[offset:])]
        self._rows = rows
        return None

    def _open_epoch(self, *, skip: int) -> Iterator[Sample]:
        split, self._account = self._split, LeftOut()
        if split.heldout is None:
            rows: Iterable[Sample] = split.train.skip(split.held_back)
        else:
            files = permutation(self.seed, self._epoch, FILES, split.train.files)
            rows = chain.from_iterable(split.train.of_file(i) for i in files)
        samples = self._samples(rows, self._account)  # so blocks and positions count sequences
        return islice(samples, skip, None) if skip else samples

    def _samples(self, rows: Iterable[Sample], account: LeftOut) -> Iterator[Sample]:
        counted = _counted(rows, account)
        return counted if self._packing is None else self._packing(counted, account)

    def _nothing(self) -> str:
        why = str(self._account)
        if isinstance(self._packing, Packing) and self._account.read > self._account.count:
            why += "; the others make no sequence of data.sequence_length tokens: lower it"
        return f"split {self._split_name!r} of data set {self.name!r} has no training samples ({why})"

    def _tell(self, line: str) -> None:
        """Once: every epoch says the same."""
        if line not in self._told:
            self._told.add(line)
            log.info("%s", line)


def _counted(rows: Iterable[Sample], account: LeftOut) -> Iterator[Sample]:
    for row in rows:
        account.read += 1
        yield row


def heldout_split(splits: Iterable[str], train: str) -> str | None:
    """The split that is held out when `train` is trained on."""
    there = set(splits) - {train}
    return next((name for name in HELDOUT_SPLITS if name in there), None)


def _packing(options: DataOptions, split: SplitOptions) -> Packing | Utterances | None:
    """What makes samples of rows: text is packed, recordings are sifted. DataError for what lacks them."""
    if options.task_type == SPEECH_TASK:
        from distqat.data.sources.utterances import Utterances

        utterances = Utterances(options)
        utterances.check(split.train)
        return utterances
    if options.task_type not in LANGUAGE_TASKS:
        return None
    text = parse_options(TextOptions, options.options, "llm")
    if text.document_start is None and split.document_start is not None:
        text = text.model_copy(update={"document_start": split.document_start})
    for part in (split.train, split.heldout):
        if part is not None and part.columns:  # unknown where the files do not say
            text_column(part.columns, text.text_column)
    return Packing(open_tokenizer(options.tokenizer, text.end_token), options.sequence_length, text)
