"""Recordings to waveforms: decoded, mixed down to one channel, at the sampling rate asked for."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqat.errors import TaskError
from distqat.extras import require
from distqat.tasks.wav_reader import is_wav, read_wav

Waveform = NDArray[np.float32]
AUDIO_COLUMNS = ("audio", "speech")
TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript")


def waveform(recording: Any, sampling_rate: int) -> Waveform:
    """One recording as float32 [samples] at `sampling_rate` hertz, in [-1, 1].

    It is `{"bytes": encoded}` or `{"array": [samples] or [channels, samples], "sampling_rate": hertz}`. WAV
    is read here (`wav_reader.py`), everything else (FLAC, OGG, MP3) needs the package soundfile.
    Raises TaskError for what is not a recording, MissingExtra without soundfile.
    """
    samples, rate = _decoded(recording)
    if samples.ndim == 2:
        samples = samples.mean(axis=0, dtype=np.float32)
    if samples.ndim != 1 or not len(samples) or rate < 1:
        raise TaskError(f"a recording of shape {list(samples.shape)} at {rate} hertz holds no sound")
    if not np.isfinite(samples).all():
        raise TaskError("a recording holds NaN or infinity")
    return resampled(samples, rate, sampling_rate)


def seconds(recording: Any) -> float:
    """How long a recording is; encoded ones tell it in their header."""
    encoded = _encoded(recording)
    if encoded is None:
        samples, rate = _decoded(recording)
        if rate < 1:
            raise TaskError(f"a recording says {rate} samples per second")
        return float(samples.shape[-1] / rate) if samples.ndim else 0.0
    if is_wav(encoded):
        header = read_wav(encoded)
        if header.known:
            return header.frames / header.rate
    soundfile = _soundfile(encoded)
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
    if is_wav(encoded):
        wav = read_wav(encoded)
        if wav.known:
            return wav.samples(), wav.rate
    soundfile = _soundfile(encoded)
    try:
        frames, rate = soundfile.read(io.BytesIO(encoded), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise TaskError(f"a recording of {len(encoded)} bytes cannot be decoded: {error}") from error
    return np.asarray(frames.T), int(rate)


def _soundfile(encoded: bytes) -> Any:
    """The package for what is not read here. Raises MissingExtra; TaskError for a WAV file."""
    if is_wav(encoded) and find_spec("soundfile") is None:
        wav = read_wav(encoded)
        raise TaskError(
            f"WAV of format {wav.format} with {8 * wav.width} bits cannot be decoded: convert it to 16-bit "
            "PCM, or pip install 'distqat[speech]'"
        )
    return require("soundfile", extra="speech", why="recorded speech that is not a WAV")


def _encoded(recording: Any) -> bytes | None:
    """The bytes of a file, where a recording is that."""
    data = recording.get("bytes") if isinstance(recording, Mapping) else recording
    if not isinstance(data, (bytes, bytearray, memoryview)):
        return None
    if not data:
        raise TaskError("a recording is empty: 0 bytes")
    return bytes(data)


def _described(recording: Any) -> str:
    if isinstance(recording, Mapping):
        return f"{', '.join(map(str, recording)) or 'nothing'}"
    return type(recording).__name__
