"""Batches survive the way through shared memory; descriptions that do not fit are refused."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.data.serving.batch_memory import DTYPES, SlotMemory, batch_nbytes
from distqat.errors import BadFrame, DataError
from distqat.tasks import Batch

PLACE = {"name": "x", "group": "inputs", "dtype": "float32", "shape": [2], "offset": 0}


def tensor_of(name: str, shape: list[int]) -> torch.Tensor:
    return torch.randint(0, 2, shape).to(DTYPES[name])


@settings(deadline=None, max_examples=40)
@given(
    parts=st.lists(
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=4)),
        min_size=1,
        max_size=5,
    ),
    slot=st.integers(0, 2),
)
def test_round_trip(parts: list[tuple[str, list[int]]], slot: int) -> None:
    tensors = {f"t{i}": tensor_of(dtype, shape) for i, (dtype, shape) in enumerate(parts)}
    batch = Batch(tensors, {"y": torch.arange(3)}, 3)
    memory = SlotMemory.create(3, batch_nbytes(batch))
    try:
        read = memory.read(slot, memory.write(slot, batch), 3)
    finally:
        memory.close_fd()
    assert list(read.inputs) == list(tensors)
    for name, tensor in [*tensors.items(), ("y", batch.labels["y"])]:
        other = {**read.inputs, **read.labels}[name]
        assert other.dtype == tensor.dtype
        assert torch.equal(other, tensor)


def test_another_mapping_sees_the_batch_without_a_copy() -> None:
    memory = SlotMemory.create(2, 256)
    other = SlotMemory(os.dup(memory.fd), 2, memory.slot_bytes)
    places = memory.write(1, Batch({"x": torch.arange(5)}, {}, 5))
    view = other.read(1, places, 5).inputs["x"]
    memory.write(1, Batch({"x": torch.arange(5, 10)}, {}, 5))
    assert view.tolist() == [5, 6, 7, 8, 9]
    for each in (memory, other):
        each.close_fd()
    assert view.sum() == 35  # the mapping outlives the descriptors


def test_a_batch_that_does_not_fit_is_refused() -> None:
    memory = SlotMemory.create(1, 128)
    with pytest.raises(DataError, match="takes 256 bytes, a slot has 128"):
        memory.write(0, Batch({"x": torch.zeros(64)}, {}, 64))
    with pytest.raises(DataError, match="does not travel"):
        memory.write(0, Batch({"x": torch.zeros(1, dtype=torch.complex64)}, {}, 1))
    memory.close_fd()


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 64},
        {"offset": -64},
        {"offset": 1},
        {"offset": "0"},
        {"shape": [17]},
        {"shape": [-1]},
        {"shape": [1 << 50]},
        {"shape": [1] * 9},
        {"shape": [True]},
        {"shape": None},
        {"dtype": "complex64"},
        {"group": "secrets"},
        {"name": 3},
    ],
)
def test_descriptions_that_do_not_fit(change: dict[str, Any]) -> None:
    memory = SlotMemory.create(1, 64)
    assert memory.read(0, [PLACE], 2).inputs["x"].shape == (2,)
    with pytest.raises(BadFrame):
        memory.read(0, [{**PLACE, **change}], 2)
    with pytest.raises(BadFrame):
        memory.read(1, [PLACE], 2)
    with pytest.raises(BadFrame):
        memory.read(0, [PLACE, PLACE], 2)
    memory.close_fd()


def test_memory_that_could_shrink_is_refused() -> None:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 128)
        with pytest.raises(BadFrame, match="not sealed"):
            SlotMemory(fd, 2, 64)
        with pytest.raises(BadFrame, match="is not 3 x 64"):
            SlotMemory(fd, 3, 64)
    finally:
        os.close(fd)
