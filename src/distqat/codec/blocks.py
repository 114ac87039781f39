"""Codecs with few bits per element and one scale per block of 64: absmax, symmetric around zero.

A block is x = code * scale with code in ±qmax and scale = absmax / qmax. Scales span the range of float32,
never that of float16: pseudo-gradients of a small learning rate fall below 6e-8. A block whose scale would
be subnormal is zero, so that processors which flush subnormals decode the same; a scale stops at a power of
two that keeps every product finite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distqat.codec.codec_interface import check_parts, flat_float32, numel_of
from distqat.errors import BadContribution

BLOCK = 64
_CHUNK = 4096 * BLOCK  # elements worked on at once: 1 MiB of float32, so that temporaries stay in the cache
_SMALLEST_SCALE = 2.0**-126


class Int8Codec:
    """8-bit codes, float32 scales: 8.5 bits per element."""

    name = "int8"
    _qmax = 127
    _codes_dtype = torch.int8
    _scales_dtype = torch.float32
    _largest_scale = 2.0**120

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """`codes` and `scales`, one per block; the last block may be shorter."""
        flat = flat_float32(x, self.name)
        numel = flat.numel()
        codes = torch.empty(self._codes_size(numel), dtype=self._codes_dtype)
        scales = torch.empty(_blocks(numel), dtype=self._scales_dtype)
        for first, last in _chunks(numel):
            width = min(BLOCK, last - first)
            x_NW = flat[first:last].view(-1, width)  # N blocks of W elements
            absmax_N = torch.maximum(x_NW.amax(1), x_NW.amin(1).neg_())
            scale_N = absmax_N.div_(self._qmax).clamp_(max=self._largest_scale)
            scale_N = scale_N.to(self._scales_dtype).float()  # codes fit the scale that travels
            scale_N[scale_N < _SMALLEST_SCALE] = 0.0
            divisor_N1 = scale_N.masked_fill(scale_N == 0, torch.inf)[:, None]
            code_NW = (x_NW / divisor_N1).round_().clamp_(-self._qmax, self._qmax)
            self._write(code_NW, codes[self._codes_size(first) : self._codes_size(last)])
            scales[_blocks(first) : _blocks(last)] = scale_N
        return {"codes": codes, "scales": scales}

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """code * scale, one rounded float32 multiplication per element."""
        numel = numel_of(shape)
        expected = {
            "codes": (self._codes_dtype, self._codes_size(numel)),
            "scales": (self._scales_dtype, _blocks(numel)),
        }
        check_parts(self.name, parts, expected)
        codes, scales = parts["codes"].contiguous(), parts["scales"].float()
        # Written so that NaN fails it too.
        usable = (scales == 0) | ((scales >= _SMALLEST_SCALE) & (scales <= self._largest_scale))
        if not bool(usable.all()):
            raise BadContribution(
                f"codec {self.name}: a scale is negative, subnormal, too large or not finite"
            )
        out = torch.empty(numel, dtype=torch.float32)
        for first, last in _chunks(numel):
            x_NW = out[first:last].view(-1, min(BLOCK, last - first))
            self._read(codes[self._codes_size(first) : self._codes_size(last)], x_NW)
            x_NW.mul_(scales[_blocks(first) : _blocks(last), None])
        return out.view(tuple(shape))

    def nbytes(self, numel: int) -> int:
        """Bytes for `numel` elements, codes and scales."""
        return (
            self._codes_size(numel) * self._codes_dtype.itemsize
            + _blocks(numel) * self._scales_dtype.itemsize
        )

    def part_names(self) -> tuple[str, ...]:
        """Codes, then scales."""
        return ("codes", "scales")

    def _codes_size(self, numel: int) -> int:
        return numel

    def _write(self, code_NW: Tensor, out: Tensor) -> None:
        """Integral float codes into the bytes that travel."""
        out.view_as(code_NW).copy_(code_NW)

    def _read(self, codes: Tensor, out_NW: Tensor) -> None:
        """The bytes that travel into float codes."""
        out_NW.copy_(codes.view_as(out_NW))


class Int4Codec(Int8Codec):
    """4-bit codes, two per byte, bfloat16 scales (range of float32, 2 bytes): 4.25 bits per element.

    Byte i of a block of W elements holds code i (low half) and code i + W/2 (high half), each plus 8; an odd
    last block is padded by one zero.
    """

    name = "int4"
    _qmax = 7
    _codes_dtype = torch.uint8
    _scales_dtype = torch.bfloat16
    _largest_scale = 2.0**124

    def _codes_size(self, numel: int) -> int:
        return (numel + 1) // 2

    def _write(self, code_NW: Tensor, out: Tensor) -> None:
        if code_NW.shape[1] % 2:
            code_NW = torch.nn.functional.pad(code_NW, (0, 1))
        half = code_NW.shape[1] // 2
        byte_NH = code_NW[:, half:].mul(16.0).add_(code_NW[:, :half]).add_(8 * 16 + 8)
        out.view_as(byte_NH).copy_(byte_NH)

    def _read(self, codes: Tensor, out_NW: Tensor) -> None:
        width = out_NW.shape[1]
        half = (width + 1) // 2
        byte_NH = codes.view(-1, half)
        out_NW[:, :half] = byte_NH & 15
        out_NW[:, half:] = (byte_NH >> 4)[:, : width - half]
        out_NW.sub_(8.0)


def _blocks(numel: int) -> int:
    return (numel + BLOCK - 1) // BLOCK


def _chunks(numel: int) -> list[tuple[int, int]]:
    """Ranges of whole blocks, then one range for a shorter last block."""
    whole = numel - numel % BLOCK
    ranges = [(first, min(first + _CHUNK, whole)) for first in range(0, whole, _CHUNK)]
    return ranges + ([(whole, numel)] if whole < numel else [])
