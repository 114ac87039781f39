"""WAV files of many makers: the same sound, and headers that lie are found out."""

from __future__ import annotations

import struct
import sys
from typing import Any

import numpy as np
import pytest

from distqat.errors import TaskError
from distqat.tasks.audio_decoder import seconds, waveform
from distqat.tasks.wav_reader import read_wav

RATE = 8_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)
GUID = b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"


def chunk(kind: bytes, body: bytes, size: int | None = None) -> bytes:
    length = len(body) if size is None else size
    return kind + struct.pack("<I", length) + body + b"\0" * (len(body) % 2)


def riff(format: bytes, sound: bytes, size: int | None = None, riff_size: int | None = None) -> bytes:
    body = chunk(b"fmt ", format) + chunk(b"LIST", b"INFOx") + chunk(b"data", sound, size)
    whole = len(body) + 4 if riff_size is None else riff_size
    return b"RIFF" + struct.pack("<I", whole) + b"WAVE" + body


def header(code: int, bits: int, channels: int = 1, rate: int = RATE) -> bytes:
    block = channels * bits // 8
    return struct.pack("<HHIIHH", code, channels, rate, rate * block, block, bits)


def extensible(code: int, bits: int, channels: int = 1) -> bytes:
    return header(0xFFFE, bits, channels) + struct.pack("<HHIH", 22, bits, 0, code) + GUID


def pcm(bits: int, x: np.ndarray[Any, Any] = TONE) -> bytes:
    codes = np.round(x.astype(np.float64) * (2 ** (bits - 1) - 1)).astype(np.int64)
    if bits == 8:
        return (codes + 128).astype(np.uint8).tobytes()
    return codes.astype("<i8").view(np.uint8).reshape(-1, 8)[:, : bits // 8].tobytes()


KINDS = {
    **{f"{bits} bit": riff(header(1, bits), pcm(bits)) for bits in (8, 16, 24, 32)},
    **{f"{bits} bit, extensible": riff(extensible(1, bits), pcm(bits)) for bits in (8, 16, 24, 32)},
    "float": riff(header(3, 32), TONE.astype("<f4").tobytes()),
    "double": riff(header(3, 64), TONE.astype("<f8").tobytes()),
    "float, extensible": riff(extensible(3, 32), TONE.astype("<f4").tobytes()),
    "two channels": riff(header(1, 16, 2), pcm(16, np.repeat(TONE, 2))),
    "piped by ffmpeg": riff(header(1, 16), pcm(16), 0xFFFFFFFF, 0xFFFFFFFF),
    "piped by sox": riff(header(1, 16), pcm(16), 0x7FFFFFFF - 36, 0x7FFFFFFF),
    "piped by arecord": riff(header(1, 16), pcm(16), 0x80000000, 0x80000024),
    "piped, sizes of 0": riff(header(1, 16), pcm(16), 0, 0),
    "piped and killed in a frame": riff(header(1, 16), pcm(16) + b"\x01", 0xFFFFFFFF, 0xFFFFFFFF),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_sound(kind: str) -> None:
    recording = {"bytes": KINDS[kind]}
    found = waveform(recording, RATE)
    assert np.abs(found[:RATE] - TONE).max() < (0.02 if kind.startswith("8 bit") else 1e-4)
    assert seconds(recording) == len(found) / RATE == pytest.approx(1.0, abs=2e-3)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the standard library has no audioop any more")
@pytest.mark.parametrize(("code", "name"), [(7, "ulaw2lin"), (6, "alaw2lin")])
@pytest.mark.filterwarnings("ignore:'audioop' is deprecated")
def test_telephone_codes(code: int, name: str) -> None:
    import audioop

    every = bytes(range(256))
    expected = np.frombuffer(getattr(audioop, name)(every, 2), "<i2") / 2**15
    assert np.array_equal(read_wav(riff(header(code, 8), every)).samples()[0], expected.astype(np.float32))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (KINDS["16 bit"][:-1001], "cut short: its header says 16000 bytes of sound, 14999 are there"),
        (KINDS["two channels"][:-1002], "cut short"),
        (riff(header(1, 16, rate=0), pcm(16)), "says 0 samples per second"),
        (riff(header(1, 16, channels=0), pcm(16)), "0 channels"),
        (riff(b"\1\0\1\0", pcm(16)), "header is cut short"),
        (KINDS["16 bit"][:30], "cannot be decoded"),
        (KINDS["16 bit"][:44], "holds no sound"),
        (riff(header(0x11, 4), bytes(400)), "WAV of format 17"),
        (riff(header(3, 32), np.array([0.5, np.nan], "<f4").tobytes()), "NaN or infinity"),
    ],
)
def test_what_is_damaged_is_said(data: bytes, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(TaskError, match=said):
        waveform({"bytes": data}, RATE)


def test_every_cut_is_refused_or_shorter() -> None:
    for kind in ("16 bit", "24 bit, extensible", "piped by ffmpeg"):
        for cut in range(12, 120):
            try:
                assert waveform({"bytes": KINDS[kind][:cut]}, RATE).size
            except TaskError:
                continue
