"""What a stage declares as codes, and what it sends as it is."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_module, quantization_lines
from distqat.distributed.serving.activation_encoder import ActivationEncoder, grid_of
from distqat.quant import activate, joints, leaving, set_state


def config_of(model: str, *stages: str, quant: dict[str, object] | None = None) -> Config:
    size = {"hidden": 16} if model == "mlp" else {"width": 0.125}
    pipeline = [{"model_name": f"{model}.{stage}", "num_classes": 4, **size} for stage in stages]
    return Config.model_validate(
        {
            "data": {"img_size": 8, "num_channels": 1},
            "model_pipeline": {"pipeline": pipeline},
            "quant": {"enabled": True, **(quant or {})},
        }
    )


def calibrated_front(model: str = "mlp", quant: dict[str, object] | None = None) -> nn.Module:
    front = build_module(config_of(model, "front", "back", quant=quant), "front")
    front(torch.randn(6, 1, 8, 8))
    activate(front)
    return front


def forms(sending: ActivationEncoder, *tensors: torch.Tensor, wanted: bool = True) -> list[str | None]:
    """The codec of each of a stage's outputs."""
    named = {f"x{index}": tensor.detach() for index, tensor in enumerate(tensors)}
    coded = sending.outputs(named, named if wanted else ()).coded
    return [coded[name].codec if name in coded else None for name in named]


@pytest.mark.parametrize("model", ["mlp", "resnet18"])
@pytest.mark.parametrize("method", ["lsq", "lsq+", "pact", "minmax"])
def test_the_joint_of_the_output_is_declared_and_its_codes_travel(model: str, method: str) -> None:
    front = calibrated_front(model, {"activation": {"method": method}})
    made = front(torch.randn(6, 1, 8, 8))
    quantizer = leaving(front)
    assert quantizer is not None
    assert [q for _, _, q in joints(front) if q.leaves_stage] == [quantizer]
    assert not (made.detach() == 0).logical_and(made.detach().signbit()).any()
    for state in ("active", "frozen"):
        set_state(front, state)
        assert forms(ActivationEncoder(front, "auto", stage="front"), made, wanted=False) == ["aligned"]


def test_what_a_teacher_gives_is_no_codes_and_is_shortened_where_that_is_wanted() -> None:
    front = calibrated_front()
    made = front(torch.randn(6, 1, 8, 8)).detach()
    for activations, form in (("auto", None), ("fp16", "fp16")):
        sending = ActivationEncoder(front, activations, stage="front")
        coded = sending.outputs({"x": made, "teacher.x": made}, ("x",)).coded
        assert coded["x"].codec == "aligned"
        assert (coded["teacher.x"].codec if "teacher.x" in coded else None) == form


def test_dropout_in_front_of_the_quantizer_is_quantized_with_the_rest() -> None:
    config = config_of("mlp", "front", "back")
    config.model_pipeline.pipeline[0].model_extra["dropout"] = 0.3  # type: ignore[index]
    front = build_module(config, "front")
    front(torch.randn(6, 1, 8, 8))
    activate(front)
    assert forms(ActivationEncoder(front, "auto", stage="front"), front(torch.randn(6, 1, 8, 8))) == [
        "aligned"
    ]


def test_what_is_float_travels_as_it_is() -> None:
    front = build_module(config_of("mlp", "front", "back"), "front")
    made = front(torch.randn(6, 1, 8, 8))
    quantizer = leaving(front)
    assert quantizer is not None
    assert grid_of(quantizer) is None, "it calibrates"
    assert forms(ActivationEncoder(front, "auto", stage="front"), made) == [None]
    activate(front)
    made = front(torch.randn(6, 1, 8, 8))
    assert forms(ActivationEncoder(front, "fp32", stage="front"), made) == [None]
    assert forms(ActivationEncoder(front, "auto", stage="front"), made, torch.ones(6)) == [None, None], (
        "two outputs"
    )


@pytest.mark.parametrize(
    "quant",
    [
        {"enabled": False},
        {"activation": {"method": "none"}},
        {"activation": {"granularity": "per_token"}},
        {"skip": ["front"]},
        {"skip": ["back"]},
        {"overrides": [{"match": "back.*", "activation": {"bits": 4}}]},
    ],
)
def test_who_declares_nothing_sends_floats(quant: dict[str, object]) -> None:
    """Also where the next stage takes no codes of 8 bits: then it quantizes by itself, from floats."""
    if quant.get("skip"):
        quant = {"skip": [f"{name}.*" for name in quant["skip"]]}  # type: ignore[attr-defined]
    front = calibrated_front(quant=quant) if quant.get("enabled", True) else None
    if front is None:
        front = build_module(config_of("mlp", "front", "back", quant=quant), "front")
    made = front(torch.randn(6, 1, 8, 8))
    declared = leaving(front)
    assert forms(ActivationEncoder(front, "auto", stage="front"), made) == (
        [None] if declared is None else ["aligned"]
    )
    assert forms(ActivationEncoder(front, "int8", stage="front"), made) == [
        "int8" if declared is None else "aligned"
    ]


def test_a_loss_is_for_what_needs_a_gradient() -> None:
    sending = ActivationEncoder(nn.Identity(), "fp16", stage="front")
    x = torch.randn(8)
    assert forms(sending, x) == ["fp16"]
    assert forms(sending, x, wanted=False) == [None]


def test_what_is_computed_behind_the_quantizer_travels_as_it_is_and_it_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    front = calibrated_front()
    made = front(torch.randn(6, 1, 8, 8))
    sending = ActivationEncoder(front, "auto", stage="front")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert forms(sending, made * 1.1) == [None]
    assert [record.message.split(":")[0] for record in caplog.records] == ["stage front"]


def test_the_start_says_what_travels() -> None:
    config = config_of("mlp", "front", "back")
    lines = quantization_lines(config, "front", build_module(config, "front"))
    assert any(line.startswith("  sends to back: integer codes of 8 bits") for line in lines)
    lines = quantization_lines(config, "back", build_module(config, "back"))
    assert not any("sends" in line for line in lines)
