"""Recordings to waveforms: decoded, mixed down to one channel, at the sampling rate asked for."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqat.errors import TaskError
from distqat.extras import require

Waveform = NDArray[np.float32]
AUDIO_COLUMNS = ("audio", "speech")
TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript")
PCM = {1: "u1", 2: "<i2", 4: "<i4"}


def waveform(recording: Any, sampling_rate: int) -> Waveform:
    """One recording as float32 [samples] at `sampling_rate` hertz, in [-1, 1].

    It is `{"bytes": encoded}` or `{"array": [samples] or [channels, samples], "sampling_rate": hertz}`. WAV
    (PCM) is read by Python itself, everything else (FLAC, OGG, MP3) needs the package soundfile.
    Raises TaskError for what is no recording, MissingExtra without soundfile.
    """
    samples, rate = _decoded(recording)
    if samples.ndim == 2:
        samples = samples.mean(axis=0, dtype=np.float32)
    if samples.ndim != 1 or not len(samples) or rate < 1:
        raise TaskError(f"a recording of shape {list(samples.shape)} at {rate} hertz holds no sound")
    return resampled(samples, rate, sampling_rate)


def seconds(recording: Any) -> float:
    """How long a recording is; encoded ones tell it in their header."""
    encoded = _encoded(recording)
    if encoded is None:
        samples, rate = _decoded(recording)
        return float(samples.shape[-1] / rate)
    if _is_wav(encoded):
        with _opened(encoded) as file:
            return file.getnframes() / file.getframerate()
    soundfile = require("soundfile", extra="speech", why="recorded speech that is no WAV")
    try:
        return float(soundfile.info(io.BytesIO(encoded)).duration)
    except soundfile.LibsndfileError as error:
        raise TaskError(f"a recording of {len(encoded)} bytes cannot be decoded: {error}") from error


def resampled(samples: Waveform, rate: int, wanted: int) -> Waveform:
    """Another sampling rate by cutting, or filling up, the spectrum: what fits in both rates stays exact."""
    if rate == wanted:
        return samples
    count = max(1, round(len(samples) * wanted / rate))
    spectrum = np.fft.rfft(samples)[: count // 2 + 1]
    return (np.fft.irfft(spectrum, count) * (count / len(samples))).astype(np.float32)


def _decoded(recording: Any) -> tuple[Waveform, int]:
    encoded = _encoded(recording)
    if encoded is None:
        try:
            samples = np.asarray(recording["array"], dtype=np.float32)
            return samples, int(recording["sampling_rate"])
        except (KeyError, TypeError, ValueError):
            raise TaskError(
                f"a recording holds bytes, or array and sampling_rate, not {_described(recording)}"
            ) from None
    if _is_wav(encoded):
        return _pcm(encoded)
    soundfile = require("soundfile", extra="speech", why="recorded speech that is no WAV")
    try:
        frames, rate = soundfile.read(io.BytesIO(encoded), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise TaskError(f"a recording of {len(encoded)} bytes cannot be decoded: {error}") from error
    return np.asarray(frames.T), int(rate)


def _pcm(encoded: bytes) -> tuple[Waveform, int]:
    with _opened(encoded) as file:
        kind = PCM.get(file.getsampwidth())
        if kind is None:
            raise TaskError(f"WAV of {8 * file.getsampwidth()} bits is not read; convert it to 16 bits")
        values = np.frombuffer(file.readframes(file.getnframes()), dtype=kind).astype(np.float32)
        middle = 128.0 if kind == "u1" else 0.0
        scaled = (values - middle) / float(2 ** (8 * file.getsampwidth() - 1))
        return scaled.reshape(-1, file.getnchannels()).T, file.getframerate()


def _opened(encoded: bytes) -> wave.Wave_read:
    try:
        return wave.open(io.BytesIO(encoded), "rb")
    except (wave.Error, EOFError) as error:
        raise TaskError(
            f"a WAV recording of {len(encoded)} bytes cannot be decoded ({error}); convert it to 16-bit PCM"
        ) from error


def _is_wav(encoded: bytes) -> bool:
    return encoded[:4] == b"RIFF" and encoded[8:12] == b"WAVE"


def _encoded(recording: Any) -> bytes | None:
    data = recording.get("bytes") if isinstance(recording, Mapping) else None
    return data if isinstance(data, bytes) else None


def _described(recording: Any) -> str:
    if isinstance(recording, Mapping):
        return f"{', '.join(map(str, recording)) or 'nothing'}"
    return type(recording).__name__
