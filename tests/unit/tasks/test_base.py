"""Microbatches: contiguous, never empty, sizes within one of each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqat.tasks import Batch


def batch_of(size: int) -> Batch:
    return Batch({"x": torch.arange(size * 2).view(size, 2)}, {"y": torch.arange(size)}, size)


@given(size=st.integers(1, 70), count=st.integers(1, 80))
def test_parts_concatenate_to_the_batch(size: int, count: int) -> None:
    batch = batch_of(size)
    parts = batch.microbatches(count)
    sizes = [part.size for part in parts]
    assert len(parts) == min(size, count)
    assert sum(sizes) == size
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    assert torch.equal(torch.cat([part.inputs["x"] for part in parts]), batch.inputs["x"])
    assert torch.equal(torch.cat([part.labels["y"] for part in parts]), batch.labels["y"])
    assert all(len(part.inputs["x"]) == part.size for part in parts)


def test_parts_are_views() -> None:
    batch = batch_of(5)
    assert batch.microbatches(2)[1].inputs["x"].data_ptr() == batch.inputs["x"][3:].data_ptr()


@pytest.mark.parametrize("count", [0, -1])
def test_a_batch_is_cut_at_least_once(count: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        batch_of(4).microbatches(count)
