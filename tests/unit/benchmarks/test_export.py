"""The parts of benchmarks/export.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks.export import GOALS, missed, parse, record, table_of
from benchmarks.export_cells import cell_of, formats_table, left_out
from benchmarks.export_models import UNTRAINED, TinyQwen, augmented_samples, resnet
from benchmarks.quantization_work import HELDOUT_SEED, Digits, Effort, augmented
from tests.unit.export.test_agreement_report import GOOD

from distqat.config import Config, load_config
from distqat.data.open_source import open_source
from distqat.errors import ExportError, MissingExtra
from distqat.export.export_request import FORMATS
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


def test_a_cell_says_what_a_format_is_worth_or_why_it_is_not_there() -> None:
    told = {
        "onnx-int8": cell_of(GOOD),
        "gguf": cell_of(ExportError("a convolution")),
        "torchao": cell_of(MissingExtra("torchao", "torchao")),
    }
    assert told["onnx-int8"] == {
        "agreement": 1.0, "places": 10, "size": 0.3, "integer": 3, "quantizable": 3, "failures": []
    }  # fmt: skip
    rows = [record(model, "W8A8", GOOD, (), told) for model in ("digits", "text")]
    failed = replace(GOOD, operations=None, failures=("other outputs",))
    rows.append(record("hf_tiny", "W8A8", None, (), {"safetensors": cell_of(failed)}))
    assert rows[2]["missed"] == ["safetensors failed"]
    table = formats_table(rows)
    assert [column.header for column in table.columns] == ["model", "setting", "onnx-int8", "safetensors"]
    cells = [list(column.cells) for column in table.columns[2:]]
    assert cells[0] == ["100.00% / 0.300 / 3 of 3"] * 2 + ["-"]
    assert cells[1] == ["-", "-", "100.00% / 0.300 FAILED"]
    assert list(left_out(rows)) == [
        "gguf of digits W8A8, text W8A8: a convolution",
        f"torchao of any model: {MissingExtra('torchao', 'torchao')}",
    ]
    assert next(table_of(rows).columns[5].cells) == ""


def test_flags() -> None:
    assert parse(["--json", "x"]).only == ("digits", "digits16", "text", "hf_tiny", "large")
    assert parse(["--json", "x"]).formats == tuple(FORMATS)
    quick = parse(["--json", "x", "--quick"])
    assert (quick.only, quick.settings) == (("digits", "text", "hf_tiny"), ("W8A8", "W4A4"))
    assert parse(["--json", "x", "--formats", "gguf"]).formats == ("gguf",)
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


def test_the_tiny_qwen_is_that_of_the_shipped_configuration() -> None:
    work = TinyQwen(Effort(steps=20, replica_steps=20, inner_steps=20, judged=0, seeds=(0,)), 0)
    config = work.config({"activation": {"bits": 4}, "weight": {"bits": 4}})
    assert config.model_pipeline.pipeline[0].model_dump()["config"]["model_type"] == "qwen3"
    assert (config.quant.activation.granularity, config.quant.activation.bits) == ("per_token", 4)
    assert config.quant.skip == load_config("hf_tiny").quant.skip
    assert not work.config(None).quant.enabled


@pytest.mark.parametrize("name", UNTRAINED)
def test_larger_models_are_configurations(name: str) -> None:
    assert Config.model_validate(UNTRAINED[name]()).stages == ["full"]
    assert resnet(1.0, 16)["data"]["img_size"] == 16
