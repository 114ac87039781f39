"""Counting what agrees, and the report that tells it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distqat.export.agreement_report import ExportReport, Operations, Sizes
from distqat.export.latency import LatencyMedians
from distqat.export.layer_agreement import LayerAgreement, first_apart
from distqat.export.output_agreement import OutputAgreement

GOOD = ExportReport(
    model="model.onnx",
    source="checkpoint c, round 3",
    format="onnx-int8",
    task="cv",
    samples=10,
    places=10,
    agreement=1.0,
    threshold=0.999,
    largest_error=0.01,
    mean_error=0.001,
    largest_output=3.0,
    metric="accuracy",
    metrics={"float": 0.9, "fake-quantized": 0.88, "exported": 0.88},
    operations=Operations(3, 3, {"QLinearConv": 2, "QGemm": 1}, {}, 0),
    sizes=Sizes(4000, 1200, 3600, 900),
    latencies=(LatencyMedians(1, 2.0, 1.0, 50),),
    layers=(LayerAgreement("front.a", 0.0, 0), LayerAgreement("front.b", 0.5, 9)),
    failures=(),
    versions={"onnxruntime": "1.22"},
)


def test_places_without_a_label_do_not_count() -> None:
    expected, found = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    expected[..., 1] = 1
    found[0, 0, 2] = found[..., 1] = 1
    found[0, 0, 1] = 0
    labels = {"y": torch.tensor([[5, -100, -100], [1, 1, -100]])}
    agreement = OutputAgreement()
    agreement.add(expected, found, labels)
    assert (agreement.places, agreement.same) == (3, 2)
    assert agreement.share == pytest.approx(2 / 3)
    assert agreement.largest_error == 1
    assert agreement.mean_error == pytest.approx(2 / 24)


def test_images_agree_number_by_number() -> None:
    picture = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    moved = picture.clone()
    moved[0, 0, 0, 0] += 0.1
    agreement = OutputAgreement()
    agreement.add(picture, moved, {})
    assert (agreement.places, agreement.same) == (48, 47)


def test_the_first_layer_apart_is_the_first_in_order() -> None:
    assert first_apart(GOOD.layers) == GOOD.layers[1]
    assert first_apart(GOOD.layers[:1]) is None
    assert first_apart([LayerAgreement("one step in a few places", 0.01, 1)]) is None
    assert first_apart([LayerAgreement("two steps", 0.01, 2)]) is not None


def test_both_files_tell_the_same(tmp_path: Path) -> None:
    GOOD.write(tmp_path)
    fields = json.loads((tmp_path / "report.json").read_text())
    assert fields["passed"] is True
    assert fields["operations"]["share"] == 1
    assert fields["sizes"]["weights_ratio"] == 0.25
    assert fields["latencies"][0]["ratio"] == 0.5
    assert [layer["agrees"] for layer in fields["layers"]] == [True, False]
    page = (tmp_path / "report.md").read_text()
    for said in (
        "passed",
        "3 of 3",
        "QGemm 1, QLinearConv 2",
        "| 0.9000 | 0.8800 | 0.8800 |",
        "0.250",
        "0.50 |",
    ):
        assert said in page


def test_a_failure_is_said_first() -> None:
    bad = replace(GOOD, failures=("98 % agree; the first layer that disagrees is front.b",))
    assert not bad.passed
    assert "**failed**" in bad.to_markdown().splitlines()[2]
    assert "front.b" in bad.to_markdown().splitlines()[4]


def test_nothing_executed_says_nothing_of_operations() -> None:
    page = replace(GOOD, operations=None, layers=(), latencies=()).to_markdown()
    assert "ONNX Runtime executes" not in page
