"""Orders that depend on nothing but their key."""

from __future__ import annotations

import numpy as np


def permutation(seed: int, epoch: int, block: int, length: int) -> list[int]:
    """A permutation of range(length), the same on every machine for the same key.

    numpy's `RandomState` is used because its streams are frozen (NEP 19); newer generators may change.
    """
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, epoch & 0xFFFFFFFF, block & 0xFFFFFFFF]
    return [int(i) for i in np.random.RandomState(key).permutation(length)]
