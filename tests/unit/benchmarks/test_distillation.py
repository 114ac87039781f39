"""The parts of benchmarks/distillation.py."""

from __future__ import annotations

import pytest
import torch
from benchmarks.distillation import AFTER, FLOAT, QUICK_SHAPE, TAUGHT, TRAINED_ON, measure, summary, table_of
from benchmarks.quantization_work import Effort


def test_ways_are_compared_with_float_seed_by_seed() -> None:
    records = [
        {"seed": seed, "setting": setting, "way": way, "accuracy": right, "loss": loss}
        for seed, setting, way, right, loss in (
            (0, FLOAT, FLOAT, 0.8, 1.0), (0, "W4A8", AFTER, 0.7, 1.2), (0, "W4A8", TAUGHT, 0.796, 1.05),
            (1, FLOAT, FLOAT, 0.5, 1.0), (1, "W4A8", AFTER, 0.4, 1.2), (1, "W4A8", TAUGHT, 0.499, 1.05),
        )
    ]  # fmt: skip
    _, _, taught = summary(records)
    assert taught["shares"] == pytest.approx([0.995, 0.998])
    assert taught["recovered"] == pytest.approx(0.75)
    assert taught["good"]
    records[2]["accuracy"] = 0.7
    rows = summary(records)
    assert not rows[2]["good"]
    assert table_of(rows).row_count == 3


def test_every_way_is_trained_from_the_same_float_model() -> None:
    torch.set_num_threads(1)
    records = list(measure(Effort(20, 20, 10, 8, (0,)), 10, QUICK_SHAPE, ["W4A8"]))
    assert [each["way"] for each in records] == [FLOAT, AFTER, TRAINED_ON, TAUGHT]
    assert len({each["accuracy"] for each in records} | {each["loss"] for each in records}) > 2
