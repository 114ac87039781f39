"""WAV files (RIFF) to samples: PCM of 8 to 32 bits, floats, mu-law and A-law, whoever wrote them.

A program that writes to a pipe cannot go back to fill in the sizes: it leaves 0xFFFFFFFF (ffmpeg), another
number that no recording reaches (sox, arecord) or 0 in the header, and the sound goes on to the end of the
file. A size that the file does not reach is otherwise a file that was cut short, which is refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqat.errors import TaskError

PCM, FLOAT, A_LAW, MU_LAW, EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
WIDTHS = {PCM: (1, 2, 3, 4), FLOAT: (4, 8), A_LAW: (1,), MU_LAW: (1,)}
"""Bytes of a sample, by format; others are not read here."""
UNSIZED = 0x7FFF0000  # from here on a size means: to the end
FORMAT = struct.Struct("<HHIIHH")


@dataclass(frozen=True)
class Wav:
    """What a header says, and the bytes of the sound, whole frames of it."""

    format: int
    channels: int
    rate: int
    width: int
    """Bytes of a sample of one channel."""
    data: memoryview

    @property
    def known(self) -> bool:
        """Whether `samples` can read it."""
        return self.width in WIDTHS.get(self.format, ())

    @property
    def frames(self) -> int:
        """Samples of each channel."""
        return len(self.data) // (self.width * self.channels)

    def samples(self) -> NDArray[np.float32]:
        """float32 [channels, samples] in [-1, 1]."""
        numbers: NDArray[np.float32] = _numbers(self).astype(np.float32)
        by_channel: NDArray[np.float32] = numbers.reshape(-1, self.channels).T
        return by_channel


def is_wav(encoded: bytes) -> bool:
    """Whether these are the bytes of a WAV file."""
    return encoded[:4] == b"RIFF" and encoded[8:12] == b"WAVE"


def read_wav(encoded: bytes) -> Wav:
    """Raises TaskError for a file that is damaged or cut short."""
    described: tuple[int, int, int, int] | None = None
    at = 12
    while at + 8 <= len(encoded):
        kind, size = encoded[at : at + 4], int.from_bytes(encoded[at + 4 : at + 8], "little")
        start, there = at + 8, len(encoded) - at - 8
        if kind == b"fmt ":
            described = _described(encoded[start : start + size], len(encoded))
        if kind == b"data":
            if described is None:
                break
            if _unsized(size, there, encoded):
                size = there
            if size > there:
                raise TaskError(
                    f"a WAV recording is cut short: its header says {size} bytes of sound, {there} are there"
                )
            format, channels, rate, width = described
            whole = size - size % (width * channels)
            return Wav(format, channels, rate, width, memoryview(encoded)[start : start + whole])
        at = start + size + size % 2
    missing = "description of its format" if described is None else "sound"
    raise TaskError(f"a WAV recording of {len(encoded)} bytes cannot be decoded: it holds no {missing}")


def _unsized(size: int, there: int, encoded: bytes) -> bool:
    """Whether a size was never filled in: too large to be meant, or 0 in both places."""
    whole = int.from_bytes(encoded[4:8], "little")
    return (size >= UNSIZED and size > there) or (size == 0 and (whole == 0 or whole >= UNSIZED))


def _described(chunk: bytes, length: int) -> tuple[int, int, int, int]:
    """Format, channels, samples per second and bytes of a sample."""
    if len(chunk) < FORMAT.size:
        raise TaskError(f"a WAV recording of {length} bytes cannot be decoded: its header is cut short")
    format, channels, rate, _, block, bits = FORMAT.unpack_from(chunk)
    if format == EXTENSIBLE and len(chunk) >= 26:
        format = int.from_bytes(chunk[24:26], "little")
    width = block // channels if channels and block else (bits + 7) // 8
    if not channels or not rate or not width:
        raise TaskError(
            f"the header of a WAV recording says {rate} samples per second, {bits} bits, {channels} channels"
        )
    return format, channels, rate, width


def _numbers(wav: Wav) -> Any:
    """All samples in their order in the file, in [-1, 1]."""
    if wav.format == FLOAT:
        return np.frombuffer(wav.data, f"<f{wav.width}")
    codes = np.frombuffer(wav.data, np.uint8)
    if wav.format == MU_LAW:
        return _mu_law(codes)
    if wav.format == A_LAW:
        return _a_law(codes)
    if wav.width == 1:
        return (codes.astype(np.float32) - 128) / 128
    if wav.width == 3:
        wide = np.zeros((len(codes) // 3, 4), np.uint8)
        wide[:, 1:] = codes.reshape(-1, 3)
        return wide.view("<i4")[:, 0].astype(np.float32) / 2**31
    return np.frombuffer(wav.data, f"<i{wav.width}").astype(np.float32) / 2 ** (8 * wav.width - 1)


def _mu_law(codes: NDArray[np.uint8]) -> NDArray[Any]:
    """ITU-T G.711: 14 bits in 8."""
    flipped = (~codes).astype(np.int32)
    size = ((((flipped & 15) << 3) + 132) << ((flipped >> 4) & 7)) - 132
    return np.where(flipped & 128, -size, size) / 2**15


def _a_law(codes: NDArray[np.uint8]) -> NDArray[Any]:
    """ITU-T G.711: 13 bits in 8."""
    flipped = codes.astype(np.int32) ^ 0x55
    exponent, low = (flipped >> 4) & 7, (flipped & 15) << 4
    size = np.where(exponent == 0, low + 8, (low + 264) << np.maximum(exponent - 1, 0))
    return np.where(flipped & 128, size, -size) / 2**15
