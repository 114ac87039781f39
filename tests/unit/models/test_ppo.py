"""The policy and value network: towers by hand, stages as the whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distqat.errors import ModelError
from distqat.models import build_stage, full_state_dict, sample_input

SMALL: dict[str, Any] = {"in_features": 3, "num_actions": 2, "hidden": 8}


@pytest.mark.parametrize("continuous", [False, True])
def test_it_is_two_perceptrons(continuous: bool) -> None:
    full = build_stage("ppo.full", {**SMALL, "continuous": continuous})
    x = torch.randn(5, 3)
    named = dict(full.named_parameters())
    outputs = full(x)
    for tower, key in (("policy", "x"), ("value", "value")):
        h = x
        for layer in ("layer1", "layer2", "out"):
            h = h @ named[f"{tower}.{layer}.weight"].T + named[f"{tower}.{layer}.bias"]
            h = h if layer == "out" else h.tanh()
        torch.testing.assert_close(outputs[key], h if key == "x" else h[:, 0])
    assert outputs["value"].shape == (5,)
    assert ("log_std" in outputs) == continuous
    if continuous:
        assert torch.equal(outputs["log_std"], torch.zeros(5, 2))


@pytest.mark.parametrize(
    ("names", "extra"),
    [
        (("front", "back"), {}),
        (("front", "back"), {"cut": ["out"], "continuous": True}),
        (("head", "body", "tail"), {"depth": 3}),
    ],
)
def test_stages_equal_the_full_model(names: tuple[str, ...], extra: dict[str, Any]) -> None:
    kwargs = {**SMALL, **extra}
    places = [{"stage_index": index, "stage_count": len(names)} for index in range(len(names))]
    stages = [build_stage(f"ppo.{n}", {**kwargs, **place}) for n, place in zip(names, places, strict=True)]
    full = build_stage("ppo.full", {key: value for key, value in kwargs.items() if key != "cut"})
    full.load_state_dict(full_state_dict([stage.state_dict() for stage in stages]))
    x = torch.randn(5, 3)
    passed = {"x": x}
    for name, stage in zip(names, stages, strict=True):
        wanted = sample_input(f"ppo.{name}", 5, kwargs)
        assert wanted is not None
        assert {n: t.shape for n, t in wanted.items()} == {n: t.shape for n, t in passed.items()}
        passed = stage(*passed.values())
    expected = full(x)
    assert passed.keys() == expected.keys()
    for outputs in (passed, expected):
        sum(tensor.square().sum() for tensor in outputs.values()).backward()  # type: ignore[union-attr]
    of_stages = {name: p for stage in stages for name, p in stage.named_parameters()}
    for name, tensor in expected.items():
        assert torch.equal(passed[name], tensor)
    for name, parameter in full.named_parameters():
        assert torch.equal(parameter.grad, of_stages[name].grad), name  # type: ignore[arg-type]


def test_sizes_that_make_no_network_are_refused() -> None:
    with pytest.raises(ModelError, match="hidden=0"):
        build_stage("ppo.full", {**SMALL, "hidden": 0})
