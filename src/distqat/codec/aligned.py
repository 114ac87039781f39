"""`aligned`: a tensor that lies on a quantizer's grid travels as its integer codes and that grid. Exact.

Fake quantization gives y = code * step, one rounded float32 multiplication, and then y's own dtype where that
is shorter. Codes and step travel instead and the receiver multiplies in the same way: the same bits. A tensor
that is off the grid anywhere, or holds a negative zero, which no integer stands for, has no codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distqat.codec.codec_interface import check_parts, numel_of
from distqat.errors import BadContribution

_CHUNK = 2**18  # elements worked on at once on a CPU, so that temporaries stay in the cache
_SMALLEST_STEP, _LARGEST_STEP = 2.0**-126, 2.0**120  # a product is neither subnormal nor infinite
_MOST_CODES = 256
_BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


@dataclass(frozen=True)
class CodeGrid:
    """The values step * {lowest..highest}; `step` is that of a float32, zero is one of at most 256 codes."""

    step: float
    lowest: int
    highest: int

    @property
    def usable(self) -> bool:
        """Whether its codes fit into a byte and its values into float32."""
        bounded = _SMALLEST_STEP <= self.step <= _LARGEST_STEP  # NaN is not
        return bounded and self.lowest <= 0 <= self.highest and self.highest - self.lowest < _MOST_CODES

    def part(self) -> Tensor:
        """float32 [3]: step, lowest, highest."""
        return torch.tensor([self.step, float(self.lowest), float(self.highest)])

    @classmethod
    def of(cls, part: Tensor) -> CodeGrid:
        """From what a peer sent; BadContribution unless it is a usable grid."""
        step, lowest, highest = part.tolist()
        if not all(math.isfinite(value) and value == int(value) for value in (lowest, highest)):
            raise BadContribution(f"codec aligned: codes from {lowest} to {highest}")
        grid = cls(step, int(lowest), int(highest))
        if not grid.usable:
            raise BadContribution(
                f"codec aligned: step {step} with codes from {grid.lowest} to {grid.highest}; the step must "
                f"be positive and finite, the codes at most {_MOST_CODES} around zero"
            )
        return grid


class AlignedCodec:
    """One byte per element: code - lowest."""

    name = "aligned"

    def encode(self, x: Tensor, grid: CodeGrid) -> dict[str, Tensor] | None:
        """`codes` (uint8, on the CPU) and `grid`; None unless decoding them gives the bits of `x`.

        `x` is of any shape, float32, float16 or bfloat16, on any device.
        """
        if x.dtype not in _BITS or not grid.usable:
            return None
        flat = x.detach().reshape(-1)
        codes = torch.empty(flat.shape, dtype=torch.uint8, device=flat.device)
        size = _CHUNK if flat.device.type == "cpu" else max(flat.numel(), 1)
        pieces = zip(torch.split(flat, size), torch.split(codes, size), strict=True)
        if not all(_found(values, grid, out) for values, out in pieces):
            return None
        return {"codes": codes.cpu(), "grid": grid.part()}

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """code * step in float32; BadContribution for a wrong part, a bad grid or a code beyond it."""
        numel = numel_of(shape)
        check_parts(self.name, parts, {"codes": (torch.uint8, numel), "grid": (torch.float32, 3)})
        grid, codes = CodeGrid.of(parts["grid"]), parts["codes"]
        span = grid.highest - grid.lowest
        if numel and span < _MOST_CODES - 1 and int(codes.max()) > span:
            raise BadContribution(f"codec aligned: a code above {grid.highest}, the highest of its grid")
        x = torch.empty(numel, dtype=torch.float32)
        for part, out in zip(torch.split(codes, _CHUNK), torch.split(x, _CHUNK), strict=True):
            _values(part, grid, out)
        return x.view(tuple(shape))


def _found(values: Tensor, grid: CodeGrid, out: Tensor) -> bool:
    """Write the codes of `values` to `out`; whether they give their bits.

    A short float is up to one code away from where it was made, so there the neighbours are tried too.
    """
    near = (values.float() * (1.0 / grid.step)).round_()
    wanted = values.view(_BITS[values.dtype])
    for nudge in (1, -2, 0):
        code = near.clamp(grid.lowest, grid.highest)
        out.copy_(code.sub_(grid.lowest))
        given = _values(out, grid, code).to(values.dtype).view(wanted.dtype)
        if torch.equal(given, wanted):
            return True
        if values.dtype == torch.float32:
            return False
        near += (given != wanted) * nudge
    return False


def _values(codes: Tensor, grid: CodeGrid, out: Tensor) -> Tensor:
    """What the codes stand for, written to `out`; the code of zero gives a positive zero."""
    out.copy_(codes)
    if grid.lowest:
        out.add_(grid.lowest)
    return out.mul_(grid.step)
