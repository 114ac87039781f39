"""Orders that depend on nothing but their key."""

from __future__ import annotations

import numpy as np


def permutation(seed: int, epoch: int, block: int, length: int) -> list[int]:
    """A permutation of range(length), the same on every machine for the same key.

    numpy's `RandomState` is used because its streams are frozen (NEP 19); newer generators may change.
    """
    return [int(i) for i in _stream(seed, epoch, block).permutation(length)]


def derive_seed(seed: int, epoch: int) -> int:
    """A seed in [0, 2^31) for a library that shuffles by itself."""
    return int(_stream(seed, epoch, 0).randint(2**31 - 1))


def _stream(seed: int, epoch: int, block: int) -> np.random.RandomState:
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, epoch & 0xFFFFFFFF, block & 0xFFFFFFFF]
    return np.random.RandomState(key)
