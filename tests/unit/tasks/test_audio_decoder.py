"""Recordings: decoded to known samples, brought to another rate without a change of what fits in both."""

from __future__ import annotations

import io
import sys
import wave
from typing import Any

import numpy as np
import pytest

from distqat.errors import MissingExtra, TaskError
from distqat.tasks.audio_decoder import resampled, seconds, waveform

RATE = 8_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def wav(samples: np.ndarray[Any, Any], *, width: int = 2, channels: int = 1) -> bytes:
    scale = 2 ** (8 * width - 1)
    codes = np.round(samples * (scale - 1)).astype(np.int64) + (128 if width == 1 else 0)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((channels, width, RATE, 0, "NONE", ""))
        file.writeframes(codes.astype({1: "u1", 2: "<i2", 4: "<i4"}[width]).tobytes())
    return buffer.getvalue()


@pytest.mark.parametrize("width", [1, 2, 4])
def test_pcm_comes_back(width: int) -> None:
    encoded = {"bytes": wav(TONE, width=width)}
    assert np.abs(waveform(encoded, RATE) - TONE).max() < 2 ** (2 - 8 * min(width, 2))
    assert seconds(encoded) == seconds({"array": TONE, "sampling_rate": RATE}) == 1.0


def test_channels_are_averaged() -> None:
    both = np.stack([TONE, 0 * TONE])
    sound = waveform({"bytes": wav(both.T.ravel(), channels=2)}, RATE)
    assert np.allclose(sound, TONE / 2, atol=1e-4)
    assert np.allclose(waveform({"array": both, "sampling_rate": RATE}, RATE), TONE / 2)


@pytest.mark.parametrize("wanted", [4_000, 16_000, 11_025])
def test_a_tone_stays_itself_at_another_rate(wanted: int) -> None:
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(wanted) / wanted)
    assert np.abs(resampled(TONE, RATE, wanted) - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("recording", "said"),
    [
        ({"bytes": b"RIFF\0\0\0\0WAVE"}, "cannot be decoded"),
        ({"bytes": wav(TONE[:0])}, "holds no sound"),
        ({"path": "/etc/passwd"}, "not path"),
        ("sound.wav", "not str"),
        ({"array": "x", "sampling_rate": RATE}, "array and sampling_rate"),
        ({"array": np.zeros((2, 2, 2)), "sampling_rate": RATE}, "holds no sound"),
    ],
)
def test_what_is_no_recording(recording: Any, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        waveform(recording, RATE)


def test_other_formats_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    for read in (lambda: waveform({"bytes": b"fLaC"}, RATE), lambda: seconds({"bytes": b"fLaC"})):
        with pytest.raises(MissingExtra, match=r"pip install 'distqat\[speech\]'"):
            read()


def test_flac() -> None:
    soundfile = pytest.importorskip("soundfile", reason="the extra speech is not installed")
    buffer = io.BytesIO()
    soundfile.write(buffer, TONE, RATE, format="FLAC")
    encoded = {"bytes": buffer.getvalue()}
    assert np.abs(waveform(encoded, RATE) - TONE).max() < 1e-4
    assert seconds(encoded) == 1.0
    for read in (lambda: waveform({"bytes": b"fLaC"}, RATE), lambda: seconds({"bytes": b"fLaC"})):
        with pytest.raises(TaskError, match="cannot be decoded"):
            read()
