"""Recordings of a stream that speech recognition can learn from: short enough, and with a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec

from distqat.data.options import DataOptions
from distqat.data.rows import LeftOut, at, origin_of
from distqat.errors import DataError, TaskError
from distqat.tasks.audio_decoder import AUDIO_COLUMNS, TEXT_COLUMNS, seconds
from distqat.tasks.base import Sample
from distqat.tasks.ctc_alphabet import Alphabet
from distqat.tasks.options import parse_options
from distqat.tasks.speech import CHARACTERS_PER_SECOND, SpeechOptions


class Utterances:
    """Passes on what fits; positions count what was passed on. Only headers are read, nothing is decoded."""

    def __init__(self, options: DataOptions) -> None:
        """Raises DataError for options that the task does not know."""
        try:
            self._options = parse_options(SpeechOptions, options.options, options.task_type)
            self._alphabet = Alphabet(self._options.alphabet)
        except TaskError as error:
            raise DataError(str(error)) from error

    def __str__(self) -> str:
        return f"max_seconds={self._options.max_seconds} alphabet={self._options.alphabet!r}"

    def __call__(self, samples: Iterable[Sample], left_out: LeftOut | None = None) -> Iterator[Sample]:
        """Recordings up to `max_seconds`, whose text can be said in that and holds some of the alphabet.

        The others are counted in `left_out`. Raises DataError for what is not a recording with a text.
        """
        account = LeftOut() if left_out is None else left_out
        for sample in samples:
            reason = self._unfit(sample)
            if reason:
                account.leave(reason, origin_of(sample))
            else:
                yield sample

    def _unfit(self, sample: Sample) -> str:
        """Why a sample is left out; empty: it is not."""
        longest = self._options.max_seconds
        recording, text = _fields(sample)
        if recording is None:
            return "with null in place of a recording"
        if text is None:
            return "with null in place of text"
        try:
            length = seconds(recording)
        except TaskError as error:
            raise DataError(f"{at(sample)}{error}") from error
        if length <= 0:
            return "without any sound"
        if length > longest:
            return f"longer than {longest:g} s (data.options.max_seconds)"
        characters = len(self._alphabet.encode(text))
        if not characters:
            return "whose text has no character of data.options.alphabet"
        if characters > longest * CHARACTERS_PER_SECOND:
            return f"whose text cannot be said in {longest:g} s"
        return ""

    def check(self, samples: Iterable[Sample]) -> None:
        """Without soundfile, read one recording, so that a run that needs it ends at its start.

        Raises MissingExtra.
        """
        if find_spec("soundfile") is None:
            next(self(samples), None)


def _fields(sample: Sample) -> tuple[object | None, str | None]:
    """Recording and text, None where they are null. DataError where a column is missing, or is not text."""
    found: list[object | None] = []
    for names in (AUDIO_COLUMNS, TEXT_COLUMNS):
        there = [sample[name] for name in names if name in sample]
        if not there:
            wanted = " and ".join(" or ".join(names) for names in (AUDIO_COLUMNS, TEXT_COLUMNS))
            columns = ", ".join(sorted(sample)) or "none"
            raise DataError(
                f"{at(sample)}a sample is not a recording with its text: expected columns {wanted}, "
                f"found: {columns}"
            )
        found.append(next((value for value in there if value is not None), None))
    recording, text = found
    if text is not None and not isinstance(text, str):
        raise DataError(f"{at(sample)}a sample has {type(text).__name__} where its text should be")
    return recording, text
