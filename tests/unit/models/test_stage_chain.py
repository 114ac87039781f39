"""Stages in one process: each takes by position what the one before returned."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from distqat.models import outputs_of_each, run_stages


class Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x * 2


class Join(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Mapping[str, Tensor]:
        return {"sum": one + other}


def test_outputs_pass_by_position_and_come_by_name() -> None:
    x = torch.tensor([1.0, 2.0])
    outputs = run_stages([Split(), Join()], {"image": x})
    assert list(outputs) == ["sum"]
    assert torch.equal(outputs["sum"], 3 * x + 1)
    assert run_stages([], {"x": x}) == {"x": x}


def test_a_stage_runs_when_its_outputs_are_asked_for() -> None:
    passed = outputs_of_each([Split(), Split()], {"x": torch.ones(1)})
    assert list(next(passed)) == ["x", "x1"]
    with pytest.raises(TypeError):  # the second takes one tensor
        next(passed)
