"""One digest for a set of named tensors; replicas are equal when their digests are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor

from distqat.tensor_bytes import flat_bytes


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over (name, dtype, shape, bytes), sorted by name; bytes as on little-endian machines.

    Equality is to the bit: -0.0 and 0.0 differ, and so do two NaN with different payloads.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        digest.update(len(header).to_bytes(8, "little"))  # no two sets give one stream of bytes
        digest.update(header)
        digest.update(flat_bytes(tensor).numpy().data)
    return digest.hexdigest()
