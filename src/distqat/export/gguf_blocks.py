"""Integer codes as llama.cpp stores them: blocks of 32 along a row, one float16 scale each.

| type | codes | bytes of a block |
|---|---|---:|
| Q8_0 | int8 | 34: the scale, 32 codes |
| Q4_0 | 4 bits, stored as code + 8 | 18: the scale, 16 low halves of bytes, then the high ones |

Our codes fit as they are, so nothing is quantized again: rounding the step to float16 is the only error,
at most 2**-11 of a weight. Source: `block_q8_0` and `block_q4_0` of llama.cpp's ggml-common.h.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
BlockType = Literal["Q8_0", "Q4_0"]

BLOCK = 32
FLOAT16_ERROR = 2.0**-11
"""Of a number, where float16 has its 11 bits."""
SMALLEST_SCALE = 2.0**-14
"""Below it float16 has fewer bits."""
_OFFSET = 8
_FOUR_BITS = 4


def block_type(bits: int) -> BlockType:
    """The smallest type that holds symmetric codes of `bits` bits, 2 to 8."""
    return "Q4_0" if bits <= _FOUR_BITS else "Q8_0"


def packed(codes: Array, steps: Array, kind: BlockType) -> Array:
    """int8 [rows, columns] and float [rows, columns / 32] -> uint8 [rows, bytes of a row]."""
    blocks = np.ascontiguousarray(codes, np.int8).reshape(-1, BLOCK)
    scales = np.ascontiguousarray(steps, "<f2").reshape(-1, 1).view(np.uint8)
    stored: Array = blocks.view(np.uint8)
    if kind == "Q4_0":
        halves = (blocks + _OFFSET).astype(np.uint8)
        stored = halves[:, : BLOCK // 2] | (halves[:, BLOCK // 2 :] << 4)
    return np.concatenate([scales, stored], axis=1).reshape(len(codes), -1)
