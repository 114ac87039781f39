from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distqat.errors import QuantError
from distqat.quant import (
    ActivationQuantizer,
    QuantOptions,
    activate,
    calibrated,
    quantize_module,
    quantizer_buffer_names,
    quantizers,
    record,
    set_state,
    step_parameter_names,
)


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 36, 3),
    )


def quantized(**section: Any) -> nn.Sequential:
    model = small()
    quantize_module(model, QuantOptions.model_validate(section), stage="full", first=True, last=True)
    return model


def batch() -> Tensor:
    return torch.randn(5, 1, 6, 6)


def statistics(model: nn.Module) -> list[Tensor]:
    return [q.counts.clone() for _, q in quantizers(model) if isinstance(q, ActivationQuantizer)]


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (True, True, [8, 4, 8]),
        (True, False, [8, 4, 4]),
        (False, True, [4, 4, 8]),
        (False, False, [4, 4, 4]),
    ],
)
def test_first_and_last_of_the_whole_model_keep_more_bits(
    first: bool, last: bool, expected: list[int]
) -> None:
    model = small()
    options = QuantOptions.model_validate({"weight": {"bits": 4}, "activation": {"bits": 4}})
    report = quantize_module(model, options, stage="front", first=first, last=last)
    assert [layer.weight_bits for layer in report.layers] == expected
    assert [layer.activation_bits for layer in report.layers] == expected


class Towers(nn.Module):
    """As an actor and a critic: two first layers and two last ones."""

    def __init__(self) -> None:
        super().__init__()
        for tower in ("policy", "value"):
            for layer in ("first", "inner", "out"):
                self.add_module(f"{tower}_{layer}", nn.Linear(4, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """[batch, 4] -> an action's and a state's numbers."""
        found = {}
        for tower in ("policy", "value"):
            y = x
            for layer in ("first", "inner"):
                y = torch.tanh(self.get_submodule(f"{tower}_{layer}")(y))
            found[tower] = self.get_submodule(f"{tower}_out")(y).squeeze(-1)
        return found


@pytest.mark.parametrize(("first", "last"), [(True, True), (True, False), (False, True)])
def test_every_layer_that_takes_the_inputs_or_gives_an_output_is_outer(first: bool, last: bool) -> None:
    model = Towers()
    options = QuantOptions.model_validate({"weight": {"bits": 4}, "activation": {"bits": 4}})
    flow = record(model, [torch.randn(3, 4)])
    report = quantize_module(model, options, stage="s", first=first, last=last, flow=flow)
    bits = {layer.name: layer.weight_bits for layer in report.layers}
    for tower in ("policy", "value"):
        assert bits[f"{tower}_first"] == (8 if first else 4)
        assert bits[f"{tower}_inner"] == 4
        assert bits[f"{tower}_out"] == (8 if last else 4)


def test_the_report_says_what_was_done_and_what_not() -> None:
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    options = QuantOptions(skip=("1",), weight={"bits": 4})  # type: ignore[arg-type]
    report = quantize_module(model, options, stage="front", first=True, last=False)
    text = str(report)
    assert "front: 1 layers quantized, 1 left in float" in text
    assert "W4A8: 1 (2" in text
    assert "1 (skip '1')" in text
    assert "embedding of 8 bits: 0" in text


def test_disabled_leaves_the_module_untouched() -> None:
    model, x = small(), batch()
    before, types = model.state_dict().keys(), [type(child) for child in model.modules()]
    report = quantize_module(model, QuantOptions(enabled=False), stage="full", first=True, last=True)
    assert model.state_dict().keys() == before
    assert [type(child) for child in model.modules()] == types
    assert not step_parameter_names(model)
    assert report.lines() == ["full: quantization is off"]
    assert not model._forward_pre_hooks
    set_state(model, "active")
    assert model(x).shape == (5, 3)


def test_quantizing_twice_is_refused() -> None:
    with pytest.raises(QuantError, match="quantized already"):
        quantize_module(quantized(), QuantOptions(), stage="full", first=True, last=True)


@pytest.mark.parametrize("dummy", [torch.zeros(5, 1, 6, 6), torch.empty(0, 1, 6, 6)])
def test_a_dummy_batch_changes_no_quantizer(dummy: Tensor) -> None:
    model = quantized()
    model(batch())
    before = statistics(model)
    model(dummy)
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(model), strict=True))
    model(batch())
    assert not any(torch.equal(a, b) for a, b in zip(before, statistics(model), strict=True))


def test_evaluation_is_not_observed() -> None:
    model = quantized().eval()
    model(batch())
    assert not any(bool(counts.any()) for counts in statistics(model))


def test_activation_is_all_or_nothing() -> None:
    model = quantized()
    model(batch())
    model[6].input_quant.counts.zero_()  # type: ignore[union-attr, operator]
    with pytest.raises(QuantError, match=r"full\.6\.input_quant has seen no real data"):
        activate(model)
    assert {quantizer.state for _, quantizer in quantizers(model)} == {"calibrating"}


def test_states() -> None:
    model = quantized(warmup={"calibrate_batches": 2})
    options = QuantOptions.model_validate({"warmup": {"calibrate_batches": 2}})
    set_state(model, "calibrating")
    with pytest.raises(QuantError, match="calibrating cannot become frozen"):
        set_state(model, "frozen")
    model(batch())
    assert not calibrated(model, options)
    model(batch())
    assert calibrated(model, options)
    set_state(model, "active")
    set_state(model, "active")
    assert calibrated(model, options)
    with pytest.raises(QuantError, match="active cannot become calibrating"):
        set_state(model, "calibrating")
    with pytest.raises(QuantError, match="only a calibrating stage can be activated"):
        activate(model)
    set_state(model, "frozen")
    assert {quantizer.state for _, quantizer in quantizers(model)} == {"frozen"}
    with pytest.raises(QuantError, match="unknown quantizer state"):
        set_state(model, "thawed")  # type: ignore[arg-type]


def test_names_of_steps_and_buffers() -> None:
    model = quantized()
    steps = step_parameter_names(model)
    assert steps == {f"{i}.{kind}_quant.log_step" for i in (0, 3, 6) for kind in ("weight", "input")}
    assert steps < {name for name, _ in model.named_parameters()}
    buffers = quantizer_buffer_names(model)
    assert "0.input_quant.counts" in buffers
    assert buffers == {name for name, _ in model.named_buffers() if "_quant." in name}


def test_a_joiner_equals_its_donor_to_the_bit() -> None:
    donor, joiner = quantized(), quantized()
    donor(batch())
    activate(donor)
    joiner.load_state_dict(donor.state_dict())
    x = batch()
    assert torch.equal(donor(x), joiner(x))
    for (name, ours), theirs in zip(donor.state_dict().items(), joiner.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("bits", [2, 8])
def test_training_keeps_steps_positive_and_learns(optimizer: str, bits: int) -> None:
    model = quantized(weight={"bits": bits}, activation={"bits": bits})
    x, y = torch.randn(12, 1, 6, 6), torch.randint(3, (12,))
    model(x)
    activate(model)
    before = {name: quantizer.log_step.detach().clone() for name, quantizer in quantizers(model)}
    make = {"adam": (torch.optim.Adam, 5e-3), "sgd": (torch.optim.SGD, 0.1)}[optimizer]
    stepper = make[0](model.parameters(), lr=make[1])
    losses = []
    for _ in range(40):
        stepper.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        stepper.step()
        losses.append(float(loss.detach()))
        assert all(bool((quantizer.step > 0).all()) for _, quantizer in quantizers(model))
    assert losses[-1] < 0.7 * losses[0]
    assert all(not torch.equal(before[name], q.log_step) for name, q in quantizers(model))
