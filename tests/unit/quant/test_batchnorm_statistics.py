"""Statistics of a stage's replicas: the mean over all batches that anybody has counted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distqat.quant import BatchNormStatistics, begin_measuring, tracked_norms


def norms() -> nn.Sequential:
    made = nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.GroupNorm(1, 2)
    return nn.Sequential(*made)


def buffers(mean: float, var: float, count: int) -> dict[str, Tensor]:
    return {
        "0.running_mean": torch.full((2,), mean),
        "0.running_var": torch.full((2,), var),
        "0.num_batches_tracked": torch.tensor(count),
    }


def shares(counts: Sequence[int]) -> list[float]:
    return [count / max(sum(counts), 1) for count in counts]


def test_norms_without_statistics_are_none_of_them() -> None:
    assert [name for name, _ in tracked_norms(norms())] == ["0"]


def test_batches_of_all_replicas_weigh_the_same() -> None:
    replicas = [buffers(1.0, 2.0, 3), buffers(5.0, 6.0, 1), buffers(99.0, 99.0, 0)]
    found = BatchNormStatistics(norms()).measured(buffers(7.0, 7.0, 0), replicas, shares)
    assert found["0.running_mean"].tolist() == [2.0, 2.0]
    assert found["0.running_var"].tolist() == [3.0, 3.0]
    assert int(found["0.num_batches_tracked"]) == 4


def test_what_nobody_has_measured_stays() -> None:
    replicas = [buffers(1.0, 2.0, 0), buffers(5.0, 6.0, -3)]
    found = BatchNormStatistics(norms()).measured(buffers(7.0, 8.0, 0), replicas, shares)
    assert found["0.running_mean"].tolist() == [7.0, 7.0]
    assert found["0.running_var"].tolist() == [8.0, 8.0]


def test_counting_begins_anew_and_the_old_statistics_serve_until_then() -> None:
    before = {**buffers(1.0, 2.0, 40), "other": torch.ones(1)}
    fresh = BatchNormStatistics(norms()).uncounted(before)
    assert int(fresh["0.num_batches_tracked"]) == 0
    assert all(fresh[name] is before[name] for name in before if name != "0.num_batches_tracked")
    module = norms()
    module(torch.randn(4, 2))
    begin_measuring(module)
    assert int(module[0].num_batches_tracked) == 0  # type: ignore[arg-type]
