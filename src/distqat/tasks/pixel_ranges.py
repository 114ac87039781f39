"""Numbers of a picture to float32 in [0, 1], by what is known of their range.

uint8, uint16, bool      the range of their type
other integers           0 to 255, as pixels of 8 bits; beyond is refused
floats                   0 to 1; beyond, and what is not finite, is refused
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqat.errors import TaskError

Array = NDArray[Any]
SLACK = 1e-3  # floats may be off by rounding, and by a resampling done before


def scaled(array: Array) -> Array:
    """Numbers to float32 in [0, 1] by the range of their type. Raises TaskError."""
    if array.dtype.kind == "f":
        return in_unit_range(array)
    if array.dtype.kind == "b":
        return array.astype(np.float32)
    if array.dtype.kind == "u" and array.itemsize <= 2:
        return _divided(array, np.iinfo(array.dtype).max)
    return in_bytes(array)


def in_bytes(array: Array) -> Array:
    """Integers without a range of their own, as pixels of 8 bits. TaskError for any outside 0 to 255."""
    if array.size and not 0 <= int(array.min()) <= int(array.max()) <= 255:
        raise TaskError(
            f"pixels as integers lie in 0 to 255, these in {array.min()} to {array.max()}; "
            "16 bits are known by their type: uint16 arrays, PNG or TIFF files"
        )
    return _divided(array, 255)


def in_unit_range(array: Array) -> Array:
    """Floats as they are, float32. TaskError for any that is not finite, or outside 0 to 1."""
    found = array.astype(np.float32)
    if not found.size:
        return found
    low, high = float(found.min()), float(found.max())  # NaN where there is one
    if not np.isfinite([low, high]).all():
        raise TaskError("pixels hold NaN or infinity")
    if low < -SLACK or high > 1 + SLACK:
        raise TaskError(
            f"pixels as floats lie in 0 to 1, these in {low:g} to {high:g}; divide them by the largest value "
            "that a pixel can have, or give pixels of 8 bits as integers"
        )
    return found if low >= 0 and high <= 1 else found.clip(0, 1)


def _divided(array: Array, largest: int) -> Array:
    found: Array = array.astype(np.float32) / np.float32(largest)
    return found
