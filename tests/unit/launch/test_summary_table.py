from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distqat.launch.summary_table import by_kind, percent, places, size, summary_table
from distqat.metrics.run_summary import RunSummary

FIELDS: dict[str, Any] = {
    "mode": "swarm",
    "metric": "accuracy",
    "value": 0.9675,
    "heldout_samples": 359,
    "loss_first": 2.31,
    "loss_last": 0.125,
    "samples": 25600,
    "samples_per_s": 210.04,
    "seconds": 121.9,
    "rounds": 40,
    "model": "checkpoints/resnet18/model.safetensors",
    "checkpoints": "checkpoints/resnet18",
    "bytes_sent": {"front.0.0.0": 3_000_000, "back.0.1.0": 1_000_000, "trainer 0": 999, "client": 12_345},
    "discarded_rounds": 1,
}
BASELINE = {
    **FIELDS,
    "mode": "baseline",
    "value": 0.9775,
    "loss_last": 0.1,
    "samples_per_s": 420.08,
    "rounds": 0,
    "bytes_sent": {},
}


def shown(*runs: RunSummary) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(summary_table(runs))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_one_run() -> None:
    text = shown(RunSummary(**FIELDS))
    for part in ("2.31000", "0.12500", "accuracy, held out", "96.75 %", "25,600", "210.0", "2:02"):
        assert part in text
    assert "sent by servers (2)   4.0 MB" in text
    assert "sent by trainers (1)  999 B" in text
    assert "sent by client        12.3 kB" in text
    assert "40, 1 discarded" in text


def test_two_runs_are_compared() -> None:
    lines = shown(RunSummary(**FIELDS), RunSummary(**BASELINE)).splitlines()
    assert lines[0].split() == ["swarm", "baseline", "swarm", "−", "baseline"]
    rows = {line[:20].strip(): line[20:].split() for line in lines[1:]}
    assert rows["accuracy, held out"] == ["96.75", "%", "97.75", "%", "-1.00", "points"]
    assert rows["loss, last steps"] == ["0.12500", "0.10000", "+0.02500"]
    assert rows["samples/s"] == ["210.0", "420.1", "×", "0.50"]


def test_a_model_that_was_not_judged() -> None:
    run = RunSummary(**{**FIELDS, "value": None, "evaluation_error": "it is broken"})
    assert "not judged" in shown(run)
    assert run.failure.startswith(
        "the model is saved as checkpoints/resnet18/model.safetensors, but it could not"
    )


def test_paths_stand_on_lines_of_their_own() -> None:
    assert places(RunSummary(**FIELDS), Path("nowhere/resnet18")) == [
        "model        checkpoints/resnet18/model.safetensors",
        "checkpoints  checkpoints/resnet18",
        "logs         nowhere/resnet18/",
    ]


def test_what_was_left_out_and_the_sheet_of_the_first_batch(tmp_path: Path) -> None:
    (tmp_path / "samples.png").write_bytes(b"")
    line = "2 of 600 rows left out: 2 with an empty text"
    run = RunSummary(**{**FIELDS, "data": {"rows": {"read": 600}, "line": line}})
    assert places(run, tmp_path)[:2] == [f"data         {line}", f"samples      {tmp_path}/samples.png"]


def test_what_was_not_measured_is_a_dash() -> None:
    run = RunSummary("swarm")
    assert (run.value, run.loss_first, run.samples) == (None, None, 0)
    assert " - " in shown(run, run)


def test_a_loss_that_is_not_finite_is_said() -> None:
    run = RunSummary(**{**FIELDS, "loss_last": math.inf})
    assert "inf" in shown(run)


def test_bytes_are_added_up_by_kind_of_role() -> None:
    sent = {"front.0.0.0": 1, "front.0.12.0": 2, "trainer 0": 4, "trainer 1": 8, "client": 16, "monitor": 32}
    assert by_kind(sent) == {"servers (2)": 3, "trainers (2)": 12, "client": 16, "monitor": 32}


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12.34e9, "12.3 GB"), (5e15, "5000.0 TB")],
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


def test_percent() -> None:
    assert percent(1.0) == "100.00 %"
    assert percent(None) == "-"
