"""Recordings of a stream that speech recognition can learn from: short enough, and with a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec

from distqat.data.options import DataOptions
from distqat.errors import DataError, TaskError
from distqat.tasks.alphabet import Alphabet
from distqat.tasks.audio import AUDIO_COLUMNS, TEXT_COLUMNS, seconds
from distqat.tasks.base import Sample
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

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Recordings up to `max_seconds`, whose text can be said in that and holds some of the alphabet."""
        longest = self._options.max_seconds
        for sample in samples:
            recording, text = _fields(sample)
            try:
                short = seconds(recording) <= longest
            except TaskError as error:
                raise DataError(str(error)) from error
            if short and 0 < len(self._alphabet.encode(text)) <= longest * CHARACTERS_PER_SECOND:
                yield sample

    def check(self, samples: Iterable[Sample]) -> None:
        """Without soundfile, read one recording, so that a run that needs it ends at its start.

        Raises MissingExtra.
        """
        if find_spec("soundfile") is None:
            next(self(samples), None)


def _fields(sample: Sample) -> tuple[object, str]:
    found = [
        next((sample[name] for name in names if sample.get(name) is not None), None)
        for names in (AUDIO_COLUMNS, TEXT_COLUMNS)
    ]
    recording, text = found
    if recording is None or not isinstance(text, str):
        wanted = " and ".join(" or ".join(names) for names in (AUDIO_COLUMNS, TEXT_COLUMNS))
        columns = ", ".join(sorted(sample)) or "none"
        raise DataError(
            f"a sample is no recording with its text: expected columns {wanted}, found: {columns}"
        )
    return recording, text
