"""What a codec is: one tensor in, a few plain tensors out, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from distqat.errors import BadContribution


class Codec(Protocol):
    """A lossy or exact form in which a tensor travels.

    Decoding gives the same bits on every processor: single IEEE float32 operations, each rounded on its
    own, no fused multiply-add. Encoding happens once, at the sender, and carries no such promise.
    """

    name: str

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """Named flat CPU tensors that stand for `x`; BadContribution when `x` is not finite."""
        ...

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """The float32 tensor of `shape`; BadContribution for a wrong part, size, dtype or value."""
        ...

    def nbytes(self, numel: int) -> int:
        """Bytes of all parts of a tensor with `numel` elements."""
        ...

    def part_names(self) -> tuple[str, ...]:
        """Names of the parts, in a fixed order."""
        ...


def flat_float32(x: Tensor, codec: str) -> Tensor:
    """`x` as a flat contiguous float32 tensor on the CPU; BadContribution when it holds NaN or infinity."""
    if not x.is_floating_point():
        raise ValueError(f"codec {codec} takes floating-point tensors, not {x.dtype}")
    flat = x.detach().to(device="cpu", dtype=torch.float32).contiguous().view(-1)
    if not is_finite(flat):
        raise BadContribution(f"a tensor of shape {tuple(x.shape)} holds NaN or infinity; it is not encoded")
    return flat


def is_finite(x: Tensor) -> bool:
    """Whether all elements are finite, in one pass and without a temporary of the same size."""
    if x.numel() == 0:
        return True
    low, high = x.aminmax()
    return math.isfinite(float(low)) and math.isfinite(float(high))


def numel_of(shape: Sequence[int]) -> int:
    """Elements of a tensor of `shape`."""
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {tuple(shape)} has a negative size")
    return math.prod(shape)


def check_parts(
    codec: str, parts: Mapping[str, Tensor], expected: Mapping[str, tuple[torch.dtype, int]]
) -> None:
    """BadContribution unless `parts` are exactly the flat tensors that `expected` lists (dtype, size)."""
    if set(parts) != set(expected):
        raise BadContribution(f"codec {codec} needs parts {sorted(expected)}, got {sorted(parts)}")
    for name, (dtype, size) in expected.items():
        part = parts[name]
        if part.dtype != dtype or part.dim() != 1 or part.numel() != size:
            raise BadContribution(
                f"codec {codec}: part {name!r} must be {dtype} of shape ({size},), "
                f"got {part.dtype} of shape {tuple(part.shape)}"
            )
