"""The parts of benchmarks/quantization_time.py."""

from __future__ import annotations

import pytest
import torch
from benchmarks.quantization_time import (
    CASES,
    FLOAT,
    QUICK_CASE,
    Way,
    batch_of,
    config_of,
    measure,
    operators,
    records,
    table_of,
    ways_of,
)

from distqat.quant import quantizers


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_a_batch_has_the_case_s_shape(case) -> None:  # type: ignore[no-untyped-def]
    parts = batch_of(case)
    assert len(parts) == case.microbatches
    assert sum(part.size for part in parts) == case.batch
    assert torch.cat([part.inputs["x"] for part in parts]).shape == (case.batch, *case.shape)
    assert config_of(case, "W4A4", True).quant.compile
    assert not config_of(case, FLOAT, False).quant.enabled


def test_models_take_turns_and_are_compared_by_medians() -> None:
    ways = ways_of(QUICK_CASE, compiled=(False,), settings=("W8A8",))
    assert [way.setting for way in ways] == [FLOAT, "W8A8"]
    of_quantized = [quantizer.state for _, quantizer in quantizers(ways[1].trainer.model)]
    assert not list(quantizers(ways[0].trainer.model))
    assert set(of_quantized) == {"active"}
    done = [way.trainer.progress.step for way in ways]
    measure(ways, batch_of(QUICK_CASE), 2)
    assert [way.trainer.progress.step for way in ways] == [count + 2 for count in done]
    assert all(len(way.seconds) == 2 for way in ways)

    base = Way(FLOAT, False, ways[0].trainer, [1.0, 2.0, 9.0])
    slow = Way("W8A8", False, ways[1].trainer, [2.6, 2.6, 30.0])
    fused = Way("W8A8", True, ways[1].trainer, [4.8, 4.8, 4.8])
    found = records(QUICK_CASE, [base, slow, fused])
    assert [record.get("ratio") for record in found] == [None, 1.3, 2.4]
    assert [record.get("good") for record in found] == [None, True, None]
    late = records(QUICK_CASE, [base, Way("W8A8", False, ways[1].trainer, [2.9])])
    assert not late[1]["good"]
    assert table_of("x", found).row_count == 3
    counts = [operators(way, batch_of(QUICK_CASE)) for way in ways]
    assert 0 < counts[0] < counts[1]
