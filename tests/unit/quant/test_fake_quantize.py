from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distqat.quant.fake_quantize import fake_quantize, step_size

LOG_STEPS = st.floats(-12, 6)
RANGES = st.integers(2, 8).flatmap(
    lambda bits: st.sampled_from([(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1), (0, 2**bits - 1)])
)


def reference(x: Tensor, log_step: Tensor, qmin: int, qmax: int, scale: float) -> Tensor:
    """LSQ as its paper's appendix has it, by autograd, with exp() in front."""
    log_step = log_step * scale + (log_step - log_step * scale).detach()
    step = log_step.exp()
    clipped = (x / step).clamp(qmin, qmax)
    return (clipped + (clipped.round() - clipped).detach()) * step


def values(seed: int, log_step: float, shape: tuple[int, ...] = (4, 33)) -> Tensor:
    """Within and beyond any code range."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * math.exp(log_step) * 10 ** (seed % 4 - 1)


@given(seed=st.integers(0, 1000), log_step=LOG_STEPS, codes=RANGES)
def test_values_are_those_of_torch_per_tensor(seed: int, log_step: float, codes: tuple[int, int]) -> None:
    x, log = values(seed, log_step), torch.tensor(log_step)
    expected = torch.fake_quantize_per_tensor_affine(
        x, log.exp(), torch.zeros((), dtype=torch.int32), codes[0], codes[1]
    )
    assert torch.equal(fake_quantize(x, log, *codes, axis=None, gradient_scale=1.0), expected)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("qmax", [1, 7, 127])
def test_values_are_those_of_torch_per_channel(axis: int, qmax: int) -> None:
    x, log = torch.randn(5, 5, 3, 3), torch.linspace(-5, 0, 5)
    expected = torch.fake_quantize_per_channel_affine(
        x, log.exp(), torch.zeros(5, dtype=torch.int32), axis, -qmax, qmax
    )
    assert torch.equal(fake_quantize(x, log, -qmax, qmax, axis=axis, gradient_scale=1.0), expected)


@given(seed=st.integers(0, 1000), log_step=LOG_STEPS, codes=RANGES)
def test_quantizing_again_changes_nothing(seed: int, log_step: float, codes: tuple[int, int]) -> None:
    x, log = values(seed, log_step), torch.tensor(log_step)
    once = fake_quantize(x, log, *codes, axis=None, gradient_scale=1.0)
    assert torch.equal(fake_quantize(once, log, *codes, axis=None, gradient_scale=1.0), once)
    assert len(once.unique()) <= codes[1] - codes[0] + 1


@given(seed=st.integers(0, 1000), log_step=st.floats(-6, 2), codes=RANGES)
@settings(max_examples=50)
def test_gradients_are_those_of_the_paper(seed: int, log_step: float, codes: tuple[int, int]) -> None:
    x = values(seed, log_step).double()
    seen = []
    for function in ("ours", "reference"):
        x_in = x.clone().requires_grad_()
        log = torch.tensor(log_step, dtype=torch.float64, requires_grad=True)
        if function == "ours":
            y = fake_quantize(x_in, log, *codes, axis=None, gradient_scale=0.3)
        else:
            y = reference(x_in, log, *codes, 0.3)
        (y * torch.linspace(-1, 2, x.numel(), dtype=torch.float64).view_as(x)).sum().backward()
        seen.append((y.detach(), x_in.grad, log.grad))
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1])
def test_gradients_per_channel(axis: int) -> None:
    x = torch.randn(4, 4, 9, dtype=torch.float64)
    log = torch.tensor([-3.0, -2.0, -1.0, 0.0], dtype=torch.float64)
    upstream = torch.randn_like(x)
    grads = []
    shape = [-1 if dim == axis else 1 for dim in range(3)]
    for ours in (True, False):
        x_in, log_in = x.clone().requires_grad_(), log.clone().requires_grad_()
        if ours:
            y = fake_quantize(x_in, log_in, -7, 7, axis=axis, gradient_scale=0.1)
        else:
            y = reference(x_in, log_in.view(shape), -7, 7, 0.1)
        y.backward(upstream)
        grads.append((x_in.grad, log_in.grad))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-12)


def test_float32_gradient_of_a_large_tensor_is_accurate() -> None:
    x = torch.randn(64, 4096)
    upstream = torch.randn_like(x)
    grads = []
    for dtype in (torch.float32, torch.float64):
        log = torch.tensor(-3.5, dtype=dtype, requires_grad=True)
        fake_quantize(x.to(dtype), log, -127, 127, axis=None, gradient_scale=1.0).backward(upstream.to(dtype))
        assert log.grad is not None
        grads.append(float(log.grad))
    noise = float(upstream.norm() * x.norm()) * 1e-6
    assert abs(grads[0] - grads[1]) < noise


def test_values_on_the_outermost_code_count_as_inside() -> None:
    log = torch.linspace(-10, 3, 50).requires_grad_()
    for code in (-127, 127):
        x = (log.detach().exp() * code).requires_grad_()
        fake_quantize(x, log, -127, 127, axis=0, gradient_scale=1.0).sum().backward()
        assert torch.equal(x.grad, torch.ones(50))  # type: ignore[arg-type]
    zero = torch.zeros(3, requires_grad=True)
    fake_quantize(zero, torch.tensor(0.0), 0, 255, axis=None, gradient_scale=1.0).sum().backward()
    assert torch.equal(zero.grad, torch.ones(3))  # type: ignore[arg-type]


def test_any_memory_order() -> None:
    x = torch.randn(2, 3, 4, 5)
    grads = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x_in = x.clone(memory_format=memory_format).requires_grad_()
        log = torch.tensor(-2.0, requires_grad=True)
        (fake_quantize(x_in, log, -7, 7, axis=None, gradient_scale=1.0) ** 2).sum().backward()
        grads.append((x_in.grad.contiguous(), log.grad))  # type: ignore[union-attr]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_inputs_are_quantized_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(8, 8).to(dtype).requires_grad_()
    log = torch.tensor(-3.0, requires_grad=True)
    y = fake_quantize(x, log, -127, 127, axis=None, gradient_scale=1.0)
    assert torch.equal(y, fake_quantize(x.float(), log, -127, 127, axis=None, gradient_scale=1.0).to(dtype))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert log.grad is not None
    assert log.grad.dtype == torch.float32


@pytest.mark.parametrize("log", [-1e4, -104.0, 104.0, 1e4, math.inf, -math.inf])
def test_a_step_is_positive_and_finite_whatever_is_learned(log: float) -> None:
    step = step_size(torch.tensor(log))
    assert 0 < float(step) < math.inf
    assert 0 < float(step.reciprocal()) < math.inf


@pytest.mark.parametrize(
    ("optimizer", "settings_"),
    [
        (torch.optim.Adam, {"lr": 0.1}),
        (torch.optim.AdamW, {"lr": 0.1}),
        (torch.optim.SGD, {"lr": 5.0, "momentum": 0.9, "nesterov": True}),
    ],
)
def test_a_step_never_reaches_zero(
    optimizer: type[torch.optim.Optimizer], settings_: dict[str, float]
) -> None:
    log = torch.full((3,), -6.0, requires_grad=True)
    stepper = optimizer([log], **settings_)  # type: ignore[call-arg]
    x = torch.randn(3, 16)
    for _ in range(1000):
        stepper.zero_grad()
        y = fake_quantize(x, log, -7, 7, axis=0, gradient_scale=1.0)
        y.square().sum().backward()  # pulls every step towards zero
        stepper.step()
        step = step_size(log.detach())
        assert bool((step > 0).all() & step.isfinite().all())


@pytest.mark.parametrize("qmin", [-7, 0])
def test_gradients_are_finite_differences_while_roundings_stay(qmin: int) -> None:
    """The straight-through estimate is the slope of s * clamp(x / s + r), r being what rounding added."""
    generator, h = torch.Generator().manual_seed(3), 1e-6
    x = torch.randn(4, 50, generator=generator, dtype=torch.float64) * 3
    weights = torch.randn(4, 50, generator=generator, dtype=torch.float64)
    log_step = torch.tensor(-0.7, dtype=torch.float64)
    place = x / log_step.exp()
    residue = place.round() - place
    inside = (place > qmin) & (place < 7)

    def surrogate(x: Tensor, log_step: Tensor) -> Tensor:
        step = log_step.exp()
        codes = torch.where(inside, x / step + residue, place.clamp(qmin, 7))
        return (weights * step * codes).sum()

    x_in, step_in = x.clone().requires_grad_(), log_step.clone().requires_grad_()
    y = fake_quantize(x_in, step_in, qmin, 7, axis=None, gradient_scale=1.0)
    (weights * y).sum().backward()
    assert (weights * y).sum().item() == pytest.approx(surrogate(x, log_step).item())
    slope = (surrogate(x, log_step + h) - surrogate(x, log_step - h)) / (2 * h)
    torch.testing.assert_close(step_in.grad, slope, rtol=1e-6, atol=1e-6)
    one = torch.zeros_like(x)
    for at in ((0, 0), (1, 7), (2, 31), (3, 49)):
        one.zero_()[at] = h
        by_x = (surrogate(x + one, log_step) - surrogate(x - one, log_step)) / (2 * h)
        assert x_in.grad is not None
        torch.testing.assert_close(x_in.grad[at], by_x, rtol=1e-5, atol=1e-6)
