"""Batches in shared memory: a memfd of equal slots that dies with its last user.

A memfd has no name, so nothing is left behind when processes are killed; it is handed over a Unix
socket (SCM_RIGHTS) and sealed against shrinking, so that no reader can be made to fault.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distqat import tensor_bytes
from distqat.errors import BadFrame, DataError
from distqat.tasks.base import Batch

ALIGNMENT = 64
MAX_DIMENSIONS = 8
_CODES = ("f32", "f16", "bf16", "i64", "i32", "u8", "bool")
DTYPES = {str(tensor_bytes.DTYPES[code])[6:]: tensor_bytes.DTYPES[code] for code in _CODES}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def batch_nbytes(batch: Batch) -> int:
    """Bytes that a batch takes in a slot, alignment included."""
    return sum(_aligned(tensor.nbytes) for group in (batch.inputs, batch.labels) for tensor in group.values())


class SlotMemory:
    """`slots` pieces of `slot_bytes` bytes each, shared by two processes."""

    def __init__(self, fd: int, slots: int, slot_bytes: int) -> None:
        """Map `fd`, which is owned from now on; BadFrame if it is not a sealed memory of this size."""
        self.slots = slots
        self.slot_bytes = slot_bytes
        self.fd = fd
        size = slots * slot_bytes
        if slots < 1 or slot_bytes < ALIGNMENT or os.fstat(fd).st_size != size:
            raise BadFrame(f"shared memory of {os.fstat(fd).st_size} bytes is not {slots} x {slot_bytes}")
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS != SEALS:
            raise BadFrame("shared memory is not sealed; it could shrink under its reader")
        self._memory = mmap.mmap(fd, size)

    @classmethod
    def create(cls, slots: int, slot_bytes: int) -> SlotMemory:
        """New memory; pages that are never written take no room."""
        size = _aligned(slot_bytes)
        fd = os.memfd_create("distqat-data", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, slots * size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            return cls(fd, slots, size)
        except BaseException:
            os.close(fd)
            raise

    def write(self, slot: int, batch: Batch) -> list[dict[str, Any]]:
        """Copy a batch into a slot and describe where its tensors lie.

        Raises:
            DataError: it does not fit, or a tensor has a type that does not travel.
        """
        needed = batch_nbytes(batch)
        if needed > self.slot_bytes:
            raise DataError(
                f"a batch of {batch.size} samples takes {needed} bytes, a slot has {self.slot_bytes}: "
                "announce the largest batch of the trainer when it connects"
            )
        places: list[dict[str, Any]] = []
        offset = 0
        for group, tensors in (("inputs", batch.inputs), ("labels", batch.labels)):
            for name, tensor in tensors.items():
                if tensor.dtype not in NAMES:
                    raise DataError(
                        f"tensor {name!r} of type {tensor.dtype} does not travel; use {sorted(DTYPES)}"
                    )
                shape = list(tensor.shape)
                self._view(slot, offset, tensor.dtype, shape).copy_(tensor)
                dtype = NAMES[tensor.dtype]
                places.append(
                    {"name": name, "group": group, "dtype": dtype, "shape": shape, "offset": offset}
                )
                offset += _aligned(tensor.nbytes)
        return places

    def read(self, slot: int, places: Sequence[Mapping[str, Any]], size: int) -> Batch:
        """The batch in a slot as views on the memory; BadFrame where the description does not fit."""
        groups: dict[str, dict[str, Tensor]] = {"inputs": {}, "labels": {}}
        for place in places:
            group, name, dtype = place.get("group"), place.get("name"), place.get("dtype")
            shape, offset = place.get("shape"), place.get("offset")
            if (
                group not in groups
                or not isinstance(name, str)
                or dtype not in DTYPES
                or name in groups[group]
            ):
                raise BadFrame(f"a tensor's description names no group, name and type: {dict(place)!r}"[:300])
            if not isinstance(shape, list) or not isinstance(offset, int):
                raise BadFrame(f"tensor {name!r} has no shape and offset")
            groups[group][name] = self._view(slot, offset, DTYPES[dtype], shape)
        return Batch(groups["inputs"], groups["labels"], size)

    def close_fd(self) -> None:
        """Give up the descriptor; the mapping lives as long as the last view on it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _view(self, slot: int, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
            raise BadFrame(f"shape {list(shape)!r} is not possible")
        count = 1
        for n in shape:
            count *= n
        end = offset + count * dtype.itemsize
        if not 0 <= slot < self.slots or offset < 0 or offset % ALIGNMENT or end > self.slot_bytes:
            raise BadFrame(f"a tensor of {end - offset} bytes at {offset} is outside slot {slot}")
        if count == 0:
            return torch.empty(list(shape), dtype=dtype)
        start = slot * self.slot_bytes + offset
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=start).view(list(shape))


def _aligned(nbytes: int) -> int:
    return (nbytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
