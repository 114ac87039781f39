"""Spoken sentences that need no network: telephone prompts of a Debian package, or synthesised ones.

    apt-get install asterisk-core-sounds-en asterisk-core-sounds-en-wav

The first holds the transcripts, the second 569 recordings of one voice (Allison Smith, CC BY-SA 3.0), 16-bit
WAV at 8 kHz, a second or two each.
"""

from __future__ import annotations

import gzip
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from distqat.data.embedded import EmbeddedSource, check_split, held_out
from distqat.data.options import DataOptions
from distqat.data.rows import LeftOut
from distqat.data.sources.synthetic_speech import SENTENCES, utterances
from distqat.errors import DataError, TaskError
from distqat.tasks.audio_decoder import seconds, waveform
from distqat.tasks.base import Sample
from distqat.tasks.options import parse_options
from distqat.tasks.speech import SpeechOptions

log = logging.getLogger(__name__)

SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TRANSCRIPTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
INSTALL = "apt-get install asterisk-core-sounds-en asterisk-core-sounds-en-wav"
NO_SPEECH = re.compile(r"\[[^]]*\]|\([^)]*\)|<[^>]*>")  # sounds that are not words
READ_OTHERWISE = re.compile(r"\d\d|[*#@$+/=;]")  # numbers and signs that stand for some word


def speech_prompts(options: DataOptions, *, seed: int) -> EmbeddedSource:
    """One recording per sentence; every fifth sentence is held out, the same ones whatever the seed.

    Raises DataError where the recorded ones are asked for and not installed, or none is short enough.
    """
    check_split(options)
    try:
        chosen = parse_options(SpeechOptions, options.options, "speech")
    except TaskError as error:
        raise DataError(str(error)) from error
    recorded = SOUNDS.is_dir() and TRANSCRIPTS.is_file()
    if chosen.prompts == "recorded" and not recorded:
        raise DataError(f"the recorded prompts are not installed: {INSTALL}")
    left_out = LeftOut("sentences")
    if recorded and chosen.prompts != "synthesised":
        kind, samples = "recorded", list(recordings(SOUNDS, TRANSCRIPTS, chosen, left_out))
        log.info("speech_prompts: %d recordings from %s", len(samples), SOUNDS)
    else:
        kind, samples = "synthesised", utterances(chosen)
        left_out.read = SENTENCES
        if len(samples) < SENTENCES:
            left_out.reasons[_too_long(chosen)] = SENTENCES - len(samples)
        log.info("speech_prompts: %d synthesised sentences (recorded ones: %s)", len(samples), INSTALL)
    if len(samples) < 5:
        raise DataError(f"no {kind} prompt is shorter than {chosen.max_seconds} s; raise max_seconds")
    source = held_out(options, samples, seed=seed)
    source.name = f"{options.dataset_name} {kind} max_seconds={chosen.max_seconds}"
    source.left_out = (left_out,)
    return source


def recordings(
    sounds: Path, transcripts: Path, options: SpeechOptions, left_out: LeftOut | None = None
) -> Iterator[Sample]:
    """{"audio": {"array", "sampling_rate"}, "text"} of what is spoken, in the order of names.

    Left out: tones and silences, numbers and signs whose reading is not written out, what is too long, and
    further recordings of one text, which would be heard in training and in the held-out part. They are
    counted in `left_out`.
    """
    account = LeftOut() if left_out is None else left_out
    seen: set[str] = set()
    for name, text in sorted(transcribed(transcripts).items()):
        account.read += 1
        path = sounds / f"{name}.wav"
        key = " ".join(re.findall(r"[a-z0-9']+", text.lower()))
        reason = _no_sentence(key, text, path)
        if reason or key in seen:
            account.leave(reason or "recorded twice", name)
            continue
        encoded = {"bytes": path.read_bytes()}
        if seconds(encoded) > options.max_seconds:
            account.leave(_too_long(options), name)
            continue
        seen.add(key)
        rate = options.sampling_rate
        yield {"audio": {"array": waveform(encoded, rate), "sampling_rate": rate}, "text": text}


def _no_sentence(key: str, text: str, path: Path) -> str:
    """Why a prompt cannot be spoken as a sentence; empty where it can."""
    if not key:
        return "without words"
    if READ_OTHERWISE.search(text):
        return "with numbers or signs whose reading is not written out"
    return "" if path.is_file() else "without a recording"


def _too_long(options: SpeechOptions) -> str:
    return f"longer than {options.max_seconds:g} s (data.options.max_seconds)"


def transcribed(path: Path) -> dict[str, str]:
    """Names of recordings to what is said in them; lines `name: text`, comments begin with `;`."""
    texts: dict[str, str] = {}
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, colon, text = line.partition(":")
            if colon and not line.startswith(";"):
                texts[name.strip()] = " ".join(NO_SPEECH.sub(" ", text).split())
    return texts
