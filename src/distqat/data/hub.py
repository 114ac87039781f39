"""Data sets of the Hugging Face hub, streamed: nothing is downloaded before it is needed.

`HF_TOKEN` and `HF_ENDPOINT` are read by the Hugging Face libraries themselves.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from distqat.data.options import DataOptions
from distqat.data.order import permutation
from distqat.data.packing import Packing
from distqat.data.source import Item, parse_place
from distqat.data.tokenizer import open_tokenizer
from distqat.errors import DataError, HubUnavailable
from distqat.tasks.base import Sample

BARE_NAMES = {"wikitext": "Salesforce/wikitext"}  # names from before the hub had owners
LANGUAGE_TASKS = ("llm", "nlp")
HELDOUT_SPLITS = ("validation", "test", "valid", "val", "dev")  # a hub test split often has no labels
HELDOUT_SAMPLES = 1000  # taken from the start of the stream where there is no such split
PROBE_TIMEOUT_S = 15.0
READ_RETRIES = 3  # the libraries' own 20 would wait for about ten minutes
FILES = -1  # the place of the order of files among the blocks of samples, which count from 0
REPO_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


class HubStream:
    """A split of a hub data set, pinned to the revision found at the start.

    Text of a language model is packed into sequences, which are the samples then.
    The stream is cut into blocks of `shuffle_buffer` samples, each permuted by (seed, epoch, block);
    files are taken in an order that depends on (seed, epoch) too. So a position is two integers, and
    going to one reads (and drops) what lies before it in the epoch.
    """

    def __init__(self, options: DataOptions, *, seed: int) -> None:
        self.name = BARE_NAMES.get(options.dataset_name, options.dataset_name)
        self._packing = _packing(options)
        self.seed = seed
        self._split_name = options.dataset_split
        self._buffer = options.shuffle_buffer
        splits, self._revision = _open(self.name, options.dataset_config)
        self._config = options.dataset_config
        if self._split_name not in splits:
            known = ", ".join(splits)
            raise DataError(f"data set {self.name!r} has no split {self._split_name!r}; known: {known}")
        self._train = _encoded(splits[self._split_name])
        held = next((s for s in HELDOUT_SPLITS if s in splits and s != self._split_name), None)
        self._heldout = None if held is None else _encoded(splits[held])
        self._epoch = 0
        self._index = 0
        self._rows: Iterator[Sample] | None = None
        self._block: list[Sample] = []  # what is left of the block at `_index`, last one first

    @property
    def order(self) -> str:
        split = f"{self.name}/{self._config or 'default'}/{self._split_name}@{self._revision}"
        packing = "" if self._packing is None else f" {self._packing}"
        return f"{split} seed={self.seed} buffer={self._buffer}{packing}"

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
        """The validation or test split; without one, the first 1,000 samples, which are not trained on.

        Of packed text at most 1,000 sequences.
        """
        dataset = self._train.take(HELDOUT_SAMPLES) if self._heldout is None else self._heldout
        rows = _reachable(self.name, dataset)
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
        if self._heldout is None:
            rows = _reachable(self.name, self._train.skip(HELDOUT_SAMPLES))
        else:
            files = permutation(self.seed, self._epoch, FILES, self._train.num_shards)
            parts = (self._train.shard(num_shards=len(files), index=i) for i in files)
            rows = _reachable(self.name, chain.from_iterable(parts))
        if self._packing is not None:  # so blocks and positions count sequences
            rows = self._packing(rows)
        return islice(rows, skip, None) if skip else rows


def _packing(options: DataOptions) -> Packing | None:
    if options.task_type not in LANGUAGE_TASKS:
        return None
    return Packing(open_tokenizer(options.tokenizer), options.sequence_length)


def _open(name: str, config: str | None) -> tuple[Mapping[str, Any], str]:
    """All splits as streams, and the revision that they are pinned to."""
    if not REPO_ID.fullmatch(name):
        raise DataError(
            f"{name!r} is no name of a data set: expected 'name' or 'owner/name', or 'digits', 'python_docs'"
        )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # a second protocol with its own servers
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    datasets.disable_progress_bars()
    for setting in ("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES"):
        setattr(datasets.config, setting, READ_RETRIES)
    try:
        revision = HfApi().dataset_info(name, timeout=PROBE_TIMEOUT_S).sha
    except HfHubHTTPError as error:
        raise _refused(name, error) from error
    except _network_errors() as error:
        raise _unreachable(name) from error
    try:
        return datasets.load_dataset(name, config, streaming=True, revision=revision), str(revision)
    except (
        ValueError,
        FileNotFoundError,
    ) as error:  # its words for a wrong configuration or an odd repository
        raise DataError(f"data set {name!r} cannot be opened: {_one_line(error)}") from error
    except _network_errors() as error:
        raise _unreachable(name) from error


def _encoded(dataset: Any) -> Any:
    """Leave images as the bytes of their file: the task decodes them, in the threads of the data server."""
    import datasets

    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def _reachable(name: str, dataset: Iterable[Sample]) -> Iterator[Sample]:
    try:
        yield from dataset
    except _network_errors() as error:
        raise _unreachable(name) from error


def _network_errors() -> tuple[type[BaseException], ...]:
    """What the hub's HTTP library (which one varies by version) raises when a server cannot be reached."""
    modules = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return (OSError, *(module.TransportError for module in modules))


def _refused(name: str, error: Exception) -> DataError:
    """The hub answered, with an HTTP error."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None and status >= 500:
        return _unreachable(name)
    if status in (401, 403, 404):
        return DataError(
            f"the hub has no data set {name!r} that you may read (HTTP {status}): "
            "check data.dataset_name, and set HF_TOKEN if it is private or gated"
        )
    return DataError(f"the hub refused data set {name!r}: {_one_line(error)}")


def _unreachable(name: str) -> HubUnavailable:
    return HubUnavailable(
        f"the data set {name!r} cannot be read because the hub cannot be reached; check the network "
        f"(HF_ENDPOINT, HF_HUB_OFFLINE) or train offline with data.dataset_name: "
        "'digits' (images) or 'python_docs' (text)"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
