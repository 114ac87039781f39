"""The figures of benchmarks/models.py, on models whose figures can be told by hand."""

from __future__ import annotations

import pytest
import torch
from benchmarks import models
from benchmarks.model_sizes import sizes
from tests.contract.small_models import MODELS, Cut, SmallModel

from distqat.models import MODEL_TYPES

FLAT = SmallModel({"in_features": 8, "hidden": 8, "depth": 3, "num_classes": 8})


def test_shares_parameters_and_boundaries() -> None:
    row = models.dealt_out("mlp", "flat", FLAT, Cut("head tail", {"cut": ["fc"]}))
    assert row["parameters"] == [3 * 72, 72]
    assert row["macs"] == [3 * 64, 64]
    assert row["shares"] == [0.75, 0.25]
    assert row["boundary_bytes"] == [8 * 4]
    assert row["largest_over_mean"] == 1.5
    assert row["cut_by"] == "user"


def test_composed_stages_do_not_differ() -> None:
    row = models.difference("mlp", MODELS["mlp"].cuts[0])
    assert (row["eval"], row["train"], row["gradients"]) == (0.0, 0.0, 0.0)


def test_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = models.full_state_dict
    monkeypatch.setattr(
        models,
        "full_state_dict",
        lambda states: {k: v + 1e-3 * torch.rand(()) for k, v in real(states).items()},
    )
    row = models.difference("mlp", MODELS["mlp"].cuts[0])
    assert min(row["eval"], row["train"], row["gradients"]) > 0


def test_every_model_of_the_registry_has_a_size() -> None:
    assert {model for model, _ in sizes()} == {name.rpartition(".")[0] for name in MODEL_TYPES}
