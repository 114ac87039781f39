from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distqat.errors import ModelError
from distqat.models import build_stage, full_state_dict, sample_input

NARROW: dict[str, Any] = {"num_classes": 5, "num_channels": 1, "img_size": 16, "width": 0.125}


def stages(names: tuple[str, ...], **changes: Any) -> list[nn.Module]:
    return [build_stage(f"resnet18.{name}", {**NARROW, **changes}) for name in names]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("names", [("front", "back"), ("head", "tail")])
def test_stages_equal_the_full_model(training: bool, names: tuple[str, str]) -> None:
    full, front, back = stages(("full", *names))
    full.load_state_dict(full_state_dict([front.state_dict(), back.state_dict()]))
    for module in (full, front, back):
        module.train(training)
    x, y = torch.randn(4, 1, 16, 16), torch.randint(5, (4,))
    outputs, expected = back(front(x)), full(x)
    assert torch.equal(outputs, expected)
    F.cross_entropy(outputs, y).backward()
    F.cross_entropy(expected, y).backward()
    of_stages = {**dict(front.named_parameters()), **dict(back.named_parameters())}
    assert set(of_stages) == {name for name, _ in full.named_parameters()}
    for name, parameter in full.named_parameters():
        assert torch.equal(parameter.grad, of_stages[name].grad), name  # type: ignore[arg-type]
    state = full_state_dict([front.state_dict(), back.state_dict()])
    for name, value in full.state_dict().items():  # BatchNorm's statistics too
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("img_size", [8, 17, 32, 64, 65, 97])
def test_sample_input_of_the_back_is_what_the_front_returns(img_size: int) -> None:
    kwargs = {**NARROW, "img_size": img_size}
    x = sample_input("resnet18.front", 2, kwargs)
    hidden = sample_input("resnet18.back", 2, kwargs)
    assert x is not None
    assert hidden is not None
    front, back = stages(("front", "back"), img_size=img_size)
    assert front(x["x"]).shape == hidden["x"].shape
    assert back(hidden["x"]).shape == (2, 5)


def test_it_is_resnet18() -> None:
    full = build_stage("resnet18.full", {"num_classes": 1000, "img_size": 224})
    assert sum(p.numel() for p in full.parameters()) == 11_689_512  # table 1 with 1000 classes, as published


def test_the_cut_balances_compute() -> None:
    macs = []
    for stage in ("front", "back"):
        module = build_stage(f"resnet18.{stage}", {"num_classes": 10})
        counted: list[int] = []

        def count(layer: nn.Module, _: Any, output: torch.Tensor, counted: list[int] = counted) -> None:
            counted.append(output.numel() * layer.get_parameter("weight")[0].numel())

        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(count)
        sample = sample_input(f"resnet18.{stage}", 1, {})
        assert sample is not None
        with torch.no_grad():
            module.eval()(sample["x"])
        macs.append(sum(counted))
    assert 0.45 < macs[0] / sum(macs) < 0.55


def test_a_model_without_channels_is_refused() -> None:
    with pytest.raises(ModelError, match="width=0"):
        build_stage("resnet18.front", {"width": 0.001})
