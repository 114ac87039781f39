"""A BatchNorm behind a quantized convolution computes what the integer model does, once all stands still."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from distqat.export.joined_stages import JoinedStages
from distqat.models import build_stage
from distqat.quant import QuantOptions, StageBoundary, activate, quantize_module, record, set_state
from distqat.quant.folded_batchnorm import FoldedNorm, fold_norm, unfold_norm


def block(bias: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=bias), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)
    )


def quantized(model: nn.Sequential, *, bits: int, seed: int = 0, snap: bool = True, **state: Any) -> Tensor:
    """Calibrated, its norm away from the identity, one gamma turned around; what it was calibrated with."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 2, 4, 4, generator=generator)
    options = {"first_last_bits": bits, "weight": {"bits": bits}, "activation": {"bits": bits}}
    flow = record(model, [x])
    chosen = QuantOptions.model_validate({**options, "bias": {"snap": snap}})
    quantize_module(model, chosen, stage="full", first=True, last=True, flow=flow)
    norm: Any = model[1]
    with torch.no_grad():
        for tensor, low, high in ((norm.weight, 0.2, 2.0), (norm.bias, -0.5, 0.5)):
            tensor.copy_(torch.rand(5, generator=generator) * (high - low) + low)
        norm.weight[0] = -norm.weight[0]
        model(x)
    set_state(model, "active")
    set_state(model, str(state.get("state", "frozen")))  # type: ignore[arg-type]
    model.train(bool(state.get("training", False)))
    return x


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_convolution_and_norm_are_an_integer_computation(bits: int, bias: bool) -> None:
    """Codes, sums and the bias's code in int64, exactly; floats only in the one multiplication at the end."""
    model = block(bias)
    x = quantized(model, bits=bits)
    conv, norm = model[0], model[1]
    assert isinstance(norm, FoldedNorm)
    taken, weight = conv.input_quant, conv.weight_quant
    s_x, s_w = taken.step.double().numpy(), weight.step.double().numpy()
    x_codes = np.rint((taken(x) / taken.step).detach().double().numpy()).astype(np.int64)
    w_codes = np.rint(weight(conv.weight).detach().double().numpy() / s_w.reshape(-1, 1, 1, 1)).astype(int)
    k = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double().numpy()
    own = 0 if conv.bias is None else conv.bias.detach().double().numpy()
    shift = (own - norm.running_mean.double().numpy()) * k + norm.bias.detach().double().numpy()
    times = 127 // (2 ** (bits - 1) - 1)  # the stored codes
    grid = s_x * s_w * np.abs(k) / times
    sums = F.conv2d(torch.from_numpy(x_codes).double(), torch.from_numpy(w_codes).double(), padding=1)
    stored = sums.numpy().astype(np.int64) * times * np.sign(k).astype(int).reshape(-1, 1, 1)
    accumulated = stored + np.rint(shift / grid).astype(np.int64).reshape(-1, 1, 1)
    expected = accumulated * grid.reshape(-1, 1, 1)
    found = norm(conv(x)).detach().double().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    codes = found / grid.reshape(-1, 1, 1)
    assert np.abs(codes - np.rint(codes)).max() < 0.02  # on the grid; without snapping they are 0.5 apart
    assert np.array_equal(np.rint(codes).astype(np.int64), accumulated)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([2, 4, 8]))
def test_what_the_next_quantizer_makes_of_it_is_the_same_again(seed: int, bits: int) -> None:
    model = block()
    x = quantized(model, bits=bits, seed=seed)
    quantizer: Any = model[4].input_quant
    once = quantizer(model[:4](x))
    assert torch.equal(quantizer(once), once)
    with torch.no_grad():  # weights that lie on their grid give the same codes, and so the same sums
        expected = model(x)
        model[0].weight.copy_(model[0].weight_quant(model[0].weight))  # type: ignore[operator]
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize(("state", "training"), [("active", False), ("active", True), ("frozen", True)])
def test_while_something_moves_it_is_a_plain_norm(state: str, training: bool) -> None:
    model = block(bias=True)
    x = quantized(model, bits=4, state=state, training=training)
    plain = copy.deepcopy(model[1])
    unfold_norm(plain)  # type: ignore[arg-type]
    assert type(plain) is nn.BatchNorm2d
    given = model[0](x)
    assert torch.equal(model[1](given), plain(given))


def test_without_snapping_no_norm_is_touched() -> None:
    model = block()
    quantized(model, bits=4, snap=False)
    assert type(model[1]) is nn.BatchNorm2d


def test_the_shift_moves_by_less_than_a_step_and_gradients_are_those_of_the_plain_norm() -> None:
    model = block(bias=True)
    x = quantized(model, bits=8)
    norm: Any = model[1]
    given = model[0](x).detach().requires_grad_()
    plain = nn.BatchNorm2d(5).eval()
    plain.load_state_dict(norm.state_dict())
    again = given.detach().clone().requires_grad_()
    weighted = torch.randn_like(given)
    found, expected = norm(given), plain(again)
    moved = float((found - expected).detach().abs().max())
    assert 0 < moved < 0.01 * float(expected.detach().abs().max())
    (found * weighted).sum().backward()
    (expected * weighted).sum().backward()
    torch.testing.assert_close(given.grad, again.grad)
    for one, other in zip(norm.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_names_of_a_checkpoint_are_what_they_were() -> None:
    model = block()
    names = set(model.state_dict())
    quantized(model, bits=8)
    assert {name for name in model.state_dict() if "_quant." not in name} == names


def test_unfolding_keeps_the_rounded_shift() -> None:
    model = block(bias=True)
    x = quantized(model, bits=4)
    given = model[0](x)
    expected = model[1](given)
    unfold_norm(model[1])  # type: ignore[arg-type]
    assert type(model[1]) is nn.BatchNorm2d
    torch.testing.assert_close(model[1](given), expected, rtol=1e-5, atol=1e-5)


def test_a_norm_without_numbers_of_its_own_does_not_fold() -> None:
    layer: Any = nn.Conv2d(1, 2, 1)
    assert not fold_norm(nn.BatchNorm2d(2, affine=False), layer)
    assert not fold_norm(nn.BatchNorm2d(2, track_running_stats=False), layer)
    assert not fold_norm(nn.GroupNorm(1, 2), layer)


class Branching(nn.Module):
    """One convolution whose output two take, and a norm that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(2, 2, 1) for _ in range(3))
        self.norm, self.twice = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        out: Tensor = self.norm(y) + y + self.twice(self.two(x)) + self.twice(self.three(x))
        return out


def test_only_a_norm_that_alone_takes_the_convolution_folds() -> None:
    model, x = Branching(), torch.randn(2, 2, 3, 3)
    flow = record(model, [x])
    quantize_module(model, QuantOptions(), stage="full", first=True, last=True, flow=flow)
    assert not any(isinstance(child, FoldedNorm) for child in model.modules())


def test_linked_stages_round_as_the_whole_does() -> None:
    kwargs = {"num_classes": 4, "num_channels": 1, "img_size": 8, "width": 0.125}
    front, back, full = (build_stage(f"resnet18.{name}", kwargs) for name in ("front", "back", "full"))
    x, options = torch.randn(8, 1, 8, 8), QuantOptions()
    hidden = front.eval()(x)
    for stage, sample, boundary, first, last in (
        (front, x, StageBoundary(sends=True), True, False),
        (back, hidden, StageBoundary(takes=True), False, True),
        (full, x, StageBoundary(), True, True),
    ):
        flow = record(stage, [sample.detach()])
        quantize_module(
            stage.train(), options, stage="s", first=first, last=last, flow=flow, boundary=boundary
        )
    with torch.no_grad():
        back(front(x))
    for stage in (front, back):
        activate(stage)
    full.load_state_dict({**front.state_dict(), **back.state_dict()})
    alone: Any = copy.deepcopy(back)
    set_state(alone.eval(), "frozen")
    whole, split = (
        JoinedStages({"full": full}).settled(),
        JoinedStages({"front": front, "back": back}).settled(),
    )
    assert torch.equal(split(x)[0], whole(x)[0])
    assert torch.equal(copy.deepcopy(split)(x)[0], whole(x)[0])
    first_norms: list[Any] = [stage.get_submodule("layer3.0.bn1") for stage in (alone, back, full)]
    shifts = [norm.folded() for norm in first_norms]
    assert shifts[0] is None  # what comes in lies on a grid that this stage does not know
    assert torch.equal(shifts[1][1], shifts[2][1])
