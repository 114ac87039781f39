"""`quant.compile`: compiled quantizers compute what eager ones do."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from torch import Tensor

from distqat.quant.fake_quantize import fake_quantize

needs_a_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler on this machine"
)


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


def assert_the_same(shape: tuple[int, ...], axis: int | None, codes: tuple[int, int]) -> None:
    """Bits of values and of the gradient of x; the gradient of log(step) is a sum in another order."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        log_step = torch.randn(() if axis is None else (shape[axis],), generator=generator) - 3
        x = torch.randn(shape, generator=generator) * 10 ** (seed - 1)
        x.view(-1)[0] = 0.0
        eager, compiled = (both_ways(x, log_step, codes, axis, each) for each in (False, True))
        assert torch.equal(compiled[0], eager[0])
        assert torch.equal(compiled[1], eager[1])
        torch.testing.assert_close(compiled[2], eager[2], rtol=1e-4, atol=1e-4 * float(x.norm() + 1))


@pytest.mark.slow
@needs_a_compiler
@pytest.mark.parametrize("codes", [(-127, 127), (-7, 7), (0, 255)])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 5, 41), None), ((4, 6, 3, 3), 0), ((33, 20), 0), ((33, 20), 1)]
)
def test_bits_of_values_and_gradients(
    shape: tuple[int, ...], axis: int | None, codes: tuple[int, int]
) -> None:
    assert_the_same(shape, axis, codes)


@pytest.mark.slow
@needs_a_compiler
def test_not_a_number_stays_one() -> None:
    x = torch.tensor([float("nan"), 1.0, float("inf"), -float("inf")])
    y = fake_quantize(x, torch.tensor(0.0), -7, 7, axis=None, gradient_scale=1.0, compiled=True)
    assert y[0].isnan()
    assert y[1:].tolist() == [1.0, 7.0, -7.0]


def test_without_a_compiler_it_warns_and_is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning, match=r"quant\.compile: there is no C\+\+ compiler 'no-such-compiler'"):
        assert_the_same((3, 8), 0, (-7, 7))
