"""What is compiled computes what eager arithmetic computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distqat import native
from distqat.quant import fake_quantize as arithmetic
from distqat.quant import kernels
from distqat.quant.fake_quantize import fake_quantize

needs_a_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C compiler on this machine")
SHAPES = [((7,), None), ((3, 5, 41), None), ((4, 6, 3, 3), 0), ((33, 20), 0), ((33, 20), 1), ((2, 3, 70), 1)]


def both_ways(
    x: Tensor, log_step: Tensor, codes: tuple[int, int], axis: int | None, compiled: bool
) -> list[Tensor]:
    """Value, gradient of x, gradient of log(step)."""
    x_in, log_in = x.clone().requires_grad_(), log_step.clone().requires_grad_()
    y = fake_quantize(x_in, log_in, *codes, axis=axis, gradient_scale=0.3, compiled=compiled)
    y.backward(torch.randn(x.shape, generator=torch.Generator().manual_seed(2)))
    assert x_in.grad is not None
    assert log_in.grad is not None
    return [y.detach(), x_in.grad, log_in.grad]


@needs_a_compiler
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@given(seed=st.integers(0, 1000), codes=st.sampled_from([(-127, 127), (-7, 7), (-1, 1), (0, 255), (0, 3)]))
@settings(max_examples=15, deadline=None)
def test_bits_of_values_and_gradients(
    shape: tuple[int, ...], axis: int | None, seed: int, codes: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_step = torch.randn(() if axis is None else (shape[axis],), generator=generator) - 3
    x = torch.randn(shape, generator=generator) * 10 ** (seed % 3 - 1)
    x.view(-1)[0] = 0.0
    assert kernels.fits(x)
    eager, compiled = (both_ways(x, log_step, codes, axis, each) for each in (False, True))
    assert torch.equal(compiled[0], eager[0])
    assert torch.equal(compiled[1], eager[1])
    torch.testing.assert_close(compiled[2], eager[2], rtol=1e-4, atol=1e-4 * float(x.norm() + 1))


@needs_a_compiler
def test_a_long_sum_is_as_good_as_in_double() -> None:
    x, log_step = torch.randn(64, 4099), torch.tensor(-3.5)
    found = both_ways(x, log_step, (-127, 127), None, True)[2]
    exact = both_ways(x.double(), log_step.double(), (-127, 127), None, False)[2]
    noise = float(x.norm()) ** 2 * 1e-6
    assert abs(float(found) - float(exact)) < noise


@needs_a_compiler
def test_not_a_number_stays_one() -> None:
    x = torch.tensor([float("nan"), 1.0, float("inf"), -float("inf")])
    y = fake_quantize(x, torch.tensor(0.0), -7, 7, axis=None, gradient_scale=1.0, compiled=True)
    assert y[0].isnan()
    assert y[1:].tolist() == [1.0, 7.0, -7.0]


def test_only_plain_float32_in_one_piece_goes_there() -> None:
    x = torch.randn(4, 6)
    assert kernels.fits(x)
    assert not kernels.fits(x.t())
    assert not kernels.fits(x.double())
    assert not kernels.fits(x.bfloat16())


def test_without_a_compiler_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "compiler", lambda: None)
    with pytest.raises(native.NoCompiler, match=r"quant\.compile needs a C compiler .* set it to false"):
        native.load("int one(void) { return 1; }")


@needs_a_compiler
def test_what_does_not_compile_is_shown() -> None:
    with pytest.raises(native.NoCompiler, match=r"failed: [\s\S]*error"):
        native.load("int one(void) { return }")


@pytest.mark.slow
@pytest.mark.parametrize("axis", [None, 0])
def test_what_gpus_run_has_the_same_bits(axis: int | None) -> None:
    """torch.compile of both directions; here by its C++ backend."""
    x, grad = torch.randn(8, 33), torch.randn(8, 33)
    step = torch.full(() if axis is None else (8, 1), 0.05)
    inverse = step.reciprocal()
    y = arithmetic._rounded(x, step, inverse, -7, 7)
    assert torch.equal(arithmetic._fused(arithmetic._rounded)(x, step, inverse, -7, 7), y)
    arguments = (grad, x, y, inverse, (-7.0, 7.0), True)
    for found, expected in zip(
        arithmetic._fused(arithmetic._gradients)(*arguments),
        arithmetic._gradients(*arguments),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
