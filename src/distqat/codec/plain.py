"""Codecs that keep one number per element: float32 as it is, and float16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distqat.codec.codec_interface import check_parts, flat_float32, is_finite, numel_of
from distqat.errors import BadContribution


class Float32Codec:
    """The tensor itself: exact."""

    name = "fp32"
    _dtype = torch.float32

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """One part, `values`; a copy, so that later changes of `x` do not show in it."""
        return {"values": flat_float32(x, self.name).clone()}

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """The values in `shape` as a new tensor."""
        check_parts(self.name, parts, {"values": (self._dtype, numel_of(shape))})
        values = parts["values"].to(torch.float32, copy=True)
        if not is_finite(values):
            raise BadContribution(f"codec {self.name}: values hold NaN or infinity")
        return values.view(tuple(shape))

    def nbytes(self, numel: int) -> int:
        """Bytes for `numel` elements."""
        return numel * self._dtype.itemsize

    def part_names(self) -> tuple[str, ...]:
        """A plain tensor travels as one part."""
        return ("values",)


class Float16Codec(Float32Codec):
    """Half precision. Values beyond its range stop at ±65504; those below 6e-8 become zero."""

    name = "fp16"
    _dtype = torch.float16

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """One part, `values`."""
        largest = torch.finfo(torch.float16).max
        return {"values": flat_float32(x, self.name).clamp(-largest, largest).half()}
