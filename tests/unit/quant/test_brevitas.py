"""Brevitas, another library of quantizers, as an oracle; the extra `oracle` installs it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distqat.quant.fake_quantize import fake_quantize

pytest.importorskip("brevitas")


def theirs(x: Tensor, step: Tensor, bits: int, *, signed: bool) -> Tensor:
    from brevitas.core.function_wrapper import RoundSte, TensorClamp
    from brevitas.core.quant import IntQuant

    quantizer = IntQuant(
        narrow_range=signed,
        signed=signed,
        float_to_int_impl=RoundSte(),
        tensor_clamp_impl=TensorClamp(),
        input_view_impl=torch.nn.Identity(),
    )
    y: Tensor = quantizer(step, torch.tensor(0.0), torch.tensor(float(bits)), x)
    return y


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_and_gradients_are_theirs(bits: int, signed: bool) -> None:
    """They clip after rounding, the paper before: values within half a code beyond the range are left out."""
    qmin, qmax = (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    log_step = torch.tensor(-1.0)
    codes = torch.randn(64, 33, generator=torch.Generator().manual_seed(bits)) * qmax
    beyond = ((codes > qmax) & (codes < qmax + 0.6)) | ((codes < qmin) & (codes > qmin - 0.6))
    x = (codes * ~beyond) * log_step.exp()
    x_ours, log_ours = x.clone().requires_grad_(), log_step.clone().requires_grad_()
    x_theirs, step_theirs = x.clone().requires_grad_(), log_step.exp().requires_grad_()
    ours = fake_quantize(x_ours, log_ours, qmin, qmax, axis=None, gradient_scale=1.0)
    other = theirs(x_theirs, step_theirs, bits, signed=signed)
    torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-7)
    g = torch.randn(64, 33, generator=torch.Generator().manual_seed(9))
    ours.backward(g)
    other.backward(g)
    torch.testing.assert_close(x_ours.grad, x_theirs.grad, rtol=1e-5, atol=1e-6)
    assert step_theirs.grad is not None
    torch.testing.assert_close(log_ours.grad, step_theirs.grad * log_step.exp(), rtol=1e-3, atol=1e-3)
