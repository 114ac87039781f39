from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from distqat.models import build_stage, full_state_dict, sample_input

SMALL: dict[str, Any] = {"num_classes": 4, "num_channels": 1, "img_size": 8, "hidden": 16}


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("names", [("front", "back"), ("head", "tail")])
def test_stages_equal_the_full_model(depth: int, names: tuple[str, str]) -> None:
    kwargs = {**SMALL, "depth": depth}
    full = build_stage("mlp.full", kwargs)
    front, back = (build_stage(f"mlp.{name}", kwargs) for name in names)
    full.load_state_dict(full_state_dict([front.state_dict(), back.state_dict()]))
    x, y = torch.randn(6, 1, 8, 8), torch.randint(4, (6,))
    outputs, expected = back(front(x)), full(x)
    assert torch.equal(outputs, expected)
    F.cross_entropy(outputs, y).backward()
    F.cross_entropy(expected, y).backward()
    of_stages = {**dict(front.named_parameters()), **dict(back.named_parameters())}
    for name, parameter in full.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, of_stages[name].grad), name  # type: ignore[arg-type]


@pytest.mark.parametrize("extra", [{}, {"in_features": 20}, {"depth": 1}])
def test_sample_inputs_fit(extra: dict[str, int]) -> None:
    kwargs = {**SMALL, **extra}
    x = sample_input("mlp.full", 3, kwargs)
    hidden = sample_input("mlp.back", 3, kwargs)
    assert x is not None
    assert hidden is not None
    assert build_stage("mlp.front", kwargs)(x["x"]).shape == hidden["x"].shape
    assert build_stage("mlp.full", kwargs)(x["x"]).shape == (3, 4)


def test_dropout_acts_in_training_only() -> None:
    full = build_stage("mlp.full", {**SMALL, "dropout": 0.5})
    x = torch.randn(2, 1, 8, 8)
    assert not torch.equal(full(x), full(x))
    full.eval()
    assert torch.equal(full(x), full(x))
