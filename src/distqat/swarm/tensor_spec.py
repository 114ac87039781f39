"""What a frame's header says of one tensor: name, dtype, shape, needs_grad; codec and parts if coded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from distqat.errors import BadFrame
from distqat.tensor_bytes import DTYPES

MAX_DIMENSIONS = 8
MAX_PARTS = 4  # of a coded tensor


@dataclass(frozen=True)
class TensorSpec:
    """One tensor as a header announces it; one that is not coded has itself as its only part."""

    name: str
    dtype: torch.dtype
    shape: list[int]
    wants_grad: bool
    codec: str | None
    parts: list[tuple[str, torch.dtype, list[int]]]


def parse_spec(method: str, spec: Any) -> TensorSpec:
    """Check one entry of a header. Raises BadFrame."""
    if not (isinstance(spec, list) and len(spec) in (4, 6)):
        raise BadFrame(
            f"{method}: a tensor needs name, dtype, shape, needs_grad, and codec and parts if coded"
        )
    name, dtype, shape = _parse_layout(method, *spec[:3])
    wants_grad = bool(spec[3]) and dtype.is_floating_point
    if len(spec) == 4:
        return TensorSpec(name, dtype, shape, wants_grad, None, [(name, dtype, shape)])
    codec, parts = spec[4:]
    if not (isinstance(codec, str) and isinstance(parts, list) and len(parts) <= MAX_PARTS):
        raise BadFrame(f"{method}: tensor {name!r} has no codec, or no list of at most {MAX_PARTS} parts")
    if not all(isinstance(part, list) and len(part) == 3 for part in parts):
        raise BadFrame(f"{method}: a part of tensor {name!r} needs name, dtype and size")
    layouts = [_parse_layout(method, part, kind, [size]) for part, kind, size in parts]
    if len({part for part, _, _ in layouts}) < len(layouts):
        raise BadFrame(f"{method}: a part of tensor {name!r} appears twice")
    return TensorSpec(name, dtype, shape, wants_grad, codec, layouts)


def _parse_layout(method: str, name: Any, dtype: Any, shape: Any) -> tuple[str, torch.dtype, list[int]]:
    if not (isinstance(name, str) and isinstance(dtype, str) and dtype in DTYPES):
        raise BadFrame(f"{method}: tensor {name!r} of dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if not (isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS and all(_is_size(n) for n in shape)):
        raise BadFrame(f"{method}: tensor {name!r} has no valid shape: {shape!r}")
    if math.prod(max(1, size) for size in shape) >= 2**48:  # an empty tensor, too, has strides
        raise BadFrame(f"{method}: tensor {name!r} of shape {shape} is too large")
    return name, DTYPES[dtype], shape


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40
