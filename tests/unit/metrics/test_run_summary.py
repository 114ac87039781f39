"""`summary.json` is JSON, and calls the metric by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distqat.distributed.assembly.evaluation import EvaluationResult, NotJudged
from distqat.distributed.coordination.run_end import judgement_fields, write_summary
from distqat.errors import RoleError
from distqat.metrics.run_summary import RunSummary


def summary(judged: EvaluationResult | NotJudged, **changes: Any) -> RunSummary:
    fields: dict[str, Any] = {
        "mode": "swarm", "loss_first": 2.0, "loss_last": 1.0, "samples": 10, "samples_per_s": 5.0,
        "seconds": 2.0, "rounds": 3, "model": "ck/model.safetensors", "logs": "logs/x", "checkpoints": "ck",
    }  # fmt: skip
    return RunSummary(**{**fields, **judgement_fields(judged, "degrees off"), **changes})


def strict(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"a bare {constant}")

    return json.loads(text, parse_constant=refuse)


def test_the_metric_has_its_own_name(tmp_path: Path) -> None:
    assert write_summary(summary(EvaluationResult("degrees off", 5.6, 0.02, 120)), tmp_path) == ""
    said = strict((tmp_path / "summary.json").read_text())
    assert (said["metric"], said["value"], said["degrees off"]) == ("degrees off", 5.6, 5.6)
    assert "accuracy" not in said
    assert said["evaluation_error"] == ""
    assert RunSummary.read(tmp_path) == summary(EvaluationResult("degrees off", 5.6, 0.02, 120))
    assert summary(EvaluationResult("accuracy", 0.9, 0.1, 5)).to_json()["accuracy"] == 0.9


def test_a_metric_named_like_another_figure_hides_none_of_them() -> None:
    assert summary(EvaluationResult("samples", 0.5, 0.0, 5)).to_json()["samples"] == 10


def test_figures_that_are_not_finite_are_null(tmp_path: Path) -> None:
    nothing = float("nan")
    write_summary(summary(EvaluationResult("return", 400.0, nothing, 20), loss_last=float("inf")), tmp_path)
    said = strict((tmp_path / "summary.json").read_text())
    assert (said["value"], said["heldout_loss"], said["loss_last"]) == (400.0, None, None)


def test_a_model_that_was_not_judged_says_so_everywhere(tmp_path: Path) -> None:
    failure = write_summary(summary(NotJudged("held-out sample 9 cannot be used: cut short")), tmp_path)
    assert failure == (
        "the model is saved as ck/model.safetensors, but it could not be judged: held-out sample 9 cannot be "
        "used: cut short; when that is put right: distqat evaluate ck/model.safetensors"
    )
    said = strict((tmp_path / "summary.json").read_text())
    assert (said["value"], said["degrees off"]) == (None, None)
    assert said["evaluation_error"] == "held-out sample 9 cannot be used: cut short"
    assert RunSummary.read(tmp_path).failure == failure


def test_a_summary_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    said = write_summary(summary(EvaluationResult("accuracy", 0.9, 0.1, 5)), tmp_path / "logs")
    assert said == (
        f"{tmp_path}/logs/summary.json could not be written (File exists), so here it is: accuracy "
        "0.9000 on 5 held-out samples, model ck/model.safetensors"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Invalid JSON"),
        ("[]", "cannot be read"),
        ('{"mode": "swarm", "samples": "many"}', "cannot be read: samples: Input should be a valid integer"),
    ],
)
def test_what_is_no_summary_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RoleError, match="no summary at"):
        RunSummary.read(tmp_path)
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(RoleError, match=said):
        RunSummary.read(tmp_path)
