"""Documents to sequences of one length, without padding.

    document, END, document, END, ...  ->  [t0 ... tT] [tT ... t2T] [t2T ... t3T] ...

`documents` says what a document is. A sequence has one token more than the model reads, the last label; the
next one begins with that token, so every token is predicted once. What is left over at the end is dropped.
The sequences of an epoch depend on the order of its documents alone, so a position is a sequence's number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from distqat.data.rows import LeftOut
from distqat.data.text.documents import documents
from distqat.data.text.tokenizer import Tokenizer
from distqat.tasks.base import Sample
from distqat.tasks.text_options import TextOptions


class Packing:
    """Turns samples with a text column into samples with `length + 1` tokens."""

    def __init__(self, tokenizer: Tokenizer, length: int, options: TextOptions | None = None) -> None:
        """Raises DataError where no token is known that ends a document."""
        self._tokenizer = tokenizer
        self._end = tokenizer.end
        self._length = length
        self.options = options or TextOptions()

    def __str__(self) -> str:
        start, end = self.options.document_start, self.options.end_token
        apart = "" if start is None else f" document_start={start!r}"
        ends = "" if end is None else f" end_token={end!r}"
        return f"tokenizer={self._tokenizer.name} sequence_length={self._length}{apart}{ends}"

    def __call__(self, samples: Iterable[Sample], left_out: LeftOut | None = None) -> Iterator[Sample]:
        """Sequences, as {"tokens": int32 [length + 1]}; rows without text are counted in `left_out`."""
        waiting: list[int] = []
        for text in documents(samples, self.options, left_out):
            waiting += self._tokenizer.encode(text)
            waiting.append(self._end)
            start = 0
            while len(waiting) - start > self._length:
                yield {"tokens": np.asarray(waiting[start : start + self._length + 1], dtype=np.int32)}
                start += self._length
            waiting = waiting[start:]
