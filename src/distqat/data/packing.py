"""Documents to sequences of one length, without padding.

    document, END, document, END, ...  ->  [t0 ... tT] [tT ... t2T] [t2T ... t3T] ...

A sequence has one token more than the model reads, the last label; the next one begins with that token, so
every token is predicted once. What is left over at the end is dropped. The sequences of an epoch depend on
the order of its documents alone, so a position is the number of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from distqat.data.tokenizer import Tokenizer
from distqat.errors import DataError
from distqat.tasks.base import Sample

TEXT_COLUMNS = ("text", "content", "sentence")


class Packing:
    """Turns samples with a text column into samples with `length + 1` tokens."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self._tokenizer = tokenizer
        self._length = length

    def __str__(self) -> str:
        return f"tokenizer={self._tokenizer.name} sequence_length={self._length}"

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Sequences, as {"tokens": int32 [length + 1]}, one after the other."""
        waiting: list[int] = []
        for sample in samples:
            ids = self._tokenizer.encode(text_of(sample))
            if not ids:
                continue  # an empty line of wikitext is no document
            waiting += ids
            waiting.append(self._tokenizer.end)
            start = 0
            while len(waiting) - start > self._length:
                yield {"tokens": np.asarray(waiting[start : start + self._length + 1], dtype=np.int32)}
                start += self._length
            waiting = waiting[start:]


def text_of(sample: Mapping[str, Any]) -> str:
    """The text of a sample; DataError names the columns where there is none."""
    for name in TEXT_COLUMNS:
        if isinstance(sample.get(name), str):
            return str(sample[name])
    columns = ", ".join(sorted(sample)) or "none"
    raise DataError(f"a sample has no text: expected a column {' or '.join(TEXT_COLUMNS)}, found: {columns}")
