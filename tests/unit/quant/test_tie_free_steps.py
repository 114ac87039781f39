"""No integer lies nearly half-way between two codes once steps are settled."""

from __future__ import annotations

import torch
from tests.unit.export.quantized import first_batch, quantized, tiny_config

from distqat.quant import ActivationQuantizer, quantizers
from distqat.quant.folded_batchnorm import FoldedNorm
from distqat.quant.int32_bias import multiples
from distqat.quant.output_quantizer import quantizer_of
from distqat.quant.quantize_stage import requantized
from distqat.quant.tie_free_steps import LARGEST, odd_ratio, remove_ties


def test_ratios_move_little_and_leave_no_ties() -> None:
    wanted = torch.logspace(-4, 1, 500, dtype=torch.float64)
    found = odd_ratio(wanted)
    assert float((found / wanted - 1).abs().max()) < 5e-4
    sums_N = torch.arange(1, 20_000, dtype=torch.float64)
    for ratio in found[::25]:
        codes_N = sums_N * ratio
        within = codes_N.abs() < 256  # what is cut off is rounded alike anyway
        apart = (codes_N[within] - codes_N[within].floor() - 0.5).abs()
        assert float(apart.min()) > 4e-5, float(ratio)


def test_steps_of_a_resnet_are_ratios_of_each_other() -> None:
    model, task, samples = quantized(tiny_config("resnet18"))
    front, back = model.children()
    names = requantized(front)
    assert names["bn1"] == "relu.output_quant"
    assert names["layer1.0.bn1"] == "layer1.0.conv2.input_quant"
    assert names["layer1.0.bn2.output_quant"] == "layer1.0.output_quant"
    assert names["relu.output_quant"] == "layer1.0.output_quant"
    assert requantized(back)["layer4.1.output_quant"] == "fc.input_quant"
    joints = [
        (stage.get_submodule(name), stage.get_submodule(other))
        for stage in (front, back)
        for name, other in requantized(stage).items()
        if name.endswith("output_quant")
    ]
    assert len(joints) > 10
    for one, other in joints:
        assert isinstance(one, ActivationQuantizer)
        assert isinstance(other, ActivationQuantizer)
        ratio = float(one.step.double() / other.step.double()) * LARGEST
        assert abs(ratio - round(ratio)) < 2e-6 * ratio
    norm, behind = front.get_submodule("layer1.0.bn1"), front.get_submodule("layer1.0.conv2.input_quant")
    assert isinstance(norm, FoldedNorm)
    assert isinstance(behind, ActivationQuantizer)
    layer, folded = norm.convolution, norm.folded()
    taken = quantizer_of(layer.input_quant)
    assert taken is not None
    assert folded is not None
    bits = layer.weight_quant.bits
    steps = taken.step.double() * layer.weight_quant.step.double() / multiples(bits) / behind.step.double()  # type: ignore[union-attr]
    ratio_C = (steps * folded[0]).abs()
    assert float((odd_ratio(ratio_C) / ratio_C - 1).abs().max()) < 1e-6

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert remove_ties([front, back]) > 0
    model.settled()
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())  # once is enough
    with torch.no_grad():
        assert model(*first_batch(task, samples).inputs.values())[0].isfinite().all()


def test_steps_that_still_learn_stay() -> None:
    model, _, _ = quantized(tiny_config("resnet18"), frozen=False)
    steps = {name: quantizer.step.clone() for name, quantizer in quantizers(model)}
    next(quantizer for _, quantizer in quantizers(model)).state_code.zero_()
    model.settled()
    for name, quantizer in quantizers(model):
        if isinstance(quantizer, ActivationQuantizer):
            assert torch.equal(quantizer.step, steps[name])
