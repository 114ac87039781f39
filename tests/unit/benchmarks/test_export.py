"""The parts of benchmarks/export.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks.export import GOALS, missed, parse, record, table_of
from benchmarks.export_models import UNTRAINED, augmented_samples, resnet
from benchmarks.quantization_work import HELDOUT_SEED, Digits, Effort, augmented

from distqat.config import Config
from distqat.data.open_source import open_source
from distqat.export.latency import LatencyMedians


def row(**changed: Any) -> dict[str, Any]:
    times = [LatencyMedians(1, 1.0, 0.5, 9), LatencyMedians(64, 10.0, 7.0, 9)]
    return record("digits", "W8A8", None, times) | {"places": 10_080, **changed}


def test_what_is_missed_is_named() -> None:
    assert row()["missed"] == ["latency at 64"]
    found = row(agreement=0.9985, integer=0.95, size=0.3)
    assert list(missed(found)) == ["agreement", "integer", "size", "latency at 64"]
    assert list(missed(row(agreement=0.9991, integer=1.0, size=0.27))) == ["latency at 64"]
    assert GOALS == {"agreement": 0.999, "integer": 1.0, "size": 0.28, "latency": 0.6}


def test_a_row_of_speed_alone_has_a_line_too() -> None:
    table = table_of([row(), row(agreement=0.9995, integer=1.0, size=0.26)])
    cells = [list(column.cells) for column in table.columns]
    assert cells[2] == ["", "99.950% of 10,080"]
    assert cells[5] == ["1.00, 0.50 (x 0.50)"] * 2


def test_flags() -> None:
    assert parse(["--json", "x"]).only == ("digits", "digits16", "text", "large")
    quick = parse(["--json", "x", "--quick"])
    assert (quick.only, quick.settings) == (("digits", "text"), ("W8A8", "W4A4"))
    assert parse(["--json", "x", "--settings", "W4A8"]).settings == ("W4A8",)
    with pytest.raises(SystemExit):
        parse(["--json", "x", "--only", "digits,pictures"])


def test_augmented_samples_are_the_pictures_that_are_judged() -> None:
    work = Digits(Effort(steps=20, replica_steps=20, inner_steps=20, judged=0, seeds=(0,)), 0)
    heldout = list(open_source(work.config(None).data, seed=0).heldout())
    samples = augmented_samples(work, heldout, len(heldout) + 5)
    assert len(samples) == len(heldout) + 5
    seen = work.task.collate(samples[: len(heldout)])
    whole = work.task.collate(heldout)
    expected = augmented(whole.inputs["x"], torch.Generator().manual_seed(HELDOUT_SEED))
    torch.testing.assert_close(seen.inputs["x"], expected.clamp(-1, 1))
    assert torch.equal(seen.labels["y"], whole.labels["y"])


@pytest.mark.parametrize("name", UNTRAINED)
def test_larger_models_are_configurations(name: str) -> None:
    assert Config.model_validate(UNTRAINED[name]()).stages == ["full"]
    assert resnet(1.0, 16)["data"]["img_size"] == 16
