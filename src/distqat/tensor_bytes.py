"""Tensors as bytes, for digests, files and frames: dtypes that may leave a process, and their short names.

Bytes are those of little-endian machines, in row-major order.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f64": torch.float64,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
"""By the name that a frame gives it; safetensors uses the same in capitals."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def flat_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, uint8 [nbytes], on the CPU; shares its memory where that is possible."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    if not flat.numel():
        return torch.empty(0, dtype=torch.uint8)
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8)  # one element is contiguous with any stride
