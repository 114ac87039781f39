"""How a stage's output travels to the next: as it is, as codes of its own quantizer, or shortened.

A tensor in a form of its own names its codec, so a receiver needs no setting and replicas need not agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from distqat.codec.aligned import AlignedCodec, CodeGrid
from distqat.codec.codec_interface import Codec
from distqat.codec.registry import CODECS
from distqat.errors import BadContribution, UnknownName

_ALIGNED = AlignedCodec()
LOSSY: dict[str, Codec] = {name: CODECS[name] for name in ("fp16", "int8")}
"""What shortens any tensor, at a loss."""


class Decoder(Protocol):
    """The receiving half of a codec."""

    def decode(self, parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """The float32 tensor of `shape`; BadContribution for a wrong part, size, dtype or value."""
        ...


DECODERS: dict[str, Decoder] = {_ALIGNED.name: _ALIGNED, **LOSSY}
CODED_DTYPES = frozenset((torch.float32, torch.float16, torch.bfloat16))
"""What can travel coded."""


@dataclass(frozen=True)
class Coded:
    """A tensor in the form in which it travels: the name of its codec, and flat parts on the CPU."""

    codec: str
    parts: Mapping[str, Tensor]


def encode_activation(x: Tensor, grid: CodeGrid | None, lossy: Codec | None) -> Coded | None:
    """The codes of `x` if it lies on `grid`, else what `lossy` makes of it; None: it travels as it is.

    A codec that would not shorten the tensor, or is given one that is not finite, is passed over.
    """
    if grid is not None:
        parts = _ALIGNED.encode(x, grid)
        if parts is not None:
            return Coded(_ALIGNED.name, parts)
    if lossy is None or x.dtype not in CODED_DTYPES or lossy.nbytes(x.numel()) >= x.nbytes:
        return None
    try:
        return Coded(lossy.name, lossy.encode(x))
    except BadContribution:  # NaN: whoever receives it says so
        return None


def decode_activation(
    codec: str, parts: Mapping[str, Tensor], shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """The tensor that `parts` stand for. Raises BadContribution, UnknownName."""
    if codec not in DECODERS:
        raise UnknownName("codec of activations", codec, DECODERS)
    if dtype not in CODED_DTYPES:
        raise BadContribution(f"tensors of {dtype} do not travel coded")
    return DECODERS[codec].decode(parts, shape).to(dtype)
