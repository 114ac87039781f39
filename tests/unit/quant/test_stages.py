"""Quantizing stage by stage is quantizing the whole model: same bits, same names, same results."""

from __future__ import annotations

from typing import Any

import torch

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_module
from distqat.models import build_stage, full_state_dict
from distqat.quant import CarriedInput, QuantOptions, activate, joints, quantize_module

KWARGS: dict[str, Any] = {"num_classes": 4, "num_channels": 1, "img_size": 8, "hidden": 16, "depth": 3}
OPTIONS = QuantOptions.model_validate({"weight": {"bits": 4}, "activation": {"bits": 4}})


def test_quantized_stages_equal_the_quantized_model() -> None:
    front, back, full = (build_stage(f"mlp.{name}", KWARGS) for name in ("front", "back", "full"))
    reports = [
        quantize_module(front, OPTIONS, stage="front", first=True, last=False),
        quantize_module(back, OPTIONS, stage="back", first=False, last=True),
    ]
    whole = quantize_module(full, OPTIONS, stage="full", first=True, last=True)
    assert whole.layers == reports[0].layers + reports[1].layers
    x = torch.randn(6, 1, 8, 8)
    back(front(x))
    for stage in (front, back):
        activate(stage)
    full.load_state_dict(full_state_dict([front.state_dict(), back.state_dict()]))
    outputs, expected = back(front(x)), full(x)
    assert torch.equal(outputs, expected)
    outputs.square().mean().backward()
    expected.square().mean().backward()
    of_stages = {**dict(front.named_parameters()), **dict(back.named_parameters())}
    for name, parameter in full.named_parameters():
        if parameter.requires_grad:  # steps of 8 bits follow their weights
            assert torch.equal(parameter.grad, of_stages[name].grad), name  # type: ignore[arg-type]


def test_the_stages_of_a_resnet_equal_the_whole_with_the_same_quantizers() -> None:
    """The tensor between the stages is a joint of the whole model too."""

    def config(*stages: str) -> Config:
        pipeline = [{"model_name": f"resnet18.{stage}", "num_classes": 4, "width": 0.125} for stage in stages]
        return Config.model_validate(
            {"data": {"img_size": 8, "num_channels": 1}, "model_pipeline": {"pipeline": pipeline}}
        )

    split, unsplit = config("front", "back"), config("full")
    front, back = (build_module(split, stage) for stage in ("front", "back"))
    full = build_module(unsplit, "full")
    x = torch.randn(6, 1, 8, 8)
    back(front(x))
    for stage in (front, back):
        activate(stage)
    full.load_state_dict(full_state_dict([front.state_dict(), back.state_dict()]))
    for stage in (front, back, full):
        stage.eval()
    hidden = front(x)
    boundary = {name: quantizer for name, _, quantizer in joints(front)}["layer2.1"]
    codes = hidden.detach() / boundary.step
    assert torch.equal(codes.round() * boundary.step, hidden.detach())
    outputs, expected = back(hidden), full(x)
    assert torch.equal(outputs, expected)
    outputs.square().mean().backward()
    expected.square().mean().backward()
    of_stages = {**dict(front.named_parameters()), **dict(back.named_parameters())}
    for name, parameter in full.named_parameters():
        torch.testing.assert_close(parameter.grad, of_stages[name].grad, msg=name)
    carried = [child for child in back.modules() if isinstance(child, CarriedInput) and not child.quantizer]
    assert len(carried) == 2  # a convolution and a shortcut take what the front sends
