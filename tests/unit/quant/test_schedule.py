"""The end of a run: statistics settle and stand, then steps do, at the same step on every replica."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from distqat.quant import (
    QuantOptions,
    activate,
    freeze_in,
    quantize_module,
    quantizer_buffer_names,
    quantizers,
)
from distqat.quant.options import WarmupOptions
from distqat.quant.schedule import Moment, apply, moment


def stage(*, enabled: bool = True) -> nn.Sequential:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    quantize_module(module, QuantOptions(enabled=enabled), stage="full", first=True, last=True)
    return module


def warmup(share: float, batches: int = 4) -> WarmupOptions:
    return WarmupOptions(freeze_bn_last=share, calibrate_batches=batches)


def test_the_last_tenth_by_hand() -> None:
    moments = [moment(step, 100, warmup(0.1)) for step in range(101)]
    assert [now.settling for now in moments[84:92]] == [None, None, 0, 1, 2, 3, None, None]
    assert [step for step, now in enumerate(moments) if now.norms_frozen] == list(range(90, 101))
    assert [step for step, now in enumerate(moments) if now.steps_frozen] == list(range(95, 101))


@given(total=st.integers(1, 500), share=st.floats(0, 0.99), batches=st.integers(1, 20))
def test_nothing_thaws(total: int, share: float, batches: int) -> None:
    moments = [moment(step, total, warmup(share, batches)) for step in range(total)]
    for before, after in itertools.pairwise(moments):
        assert before.norms_frozen <= after.norms_frozen
        assert before.steps_frozen <= after.steps_frozen
    assert all(now.norms_frozen for now in moments if now.steps_frozen)
    assert sum(now.norms_frozen for now in moments) == int(total * share)


def test_no_share_is_never() -> None:
    assert {moment(step, 50, warmup(0)) for step in range(50)} == {Moment()}


def test_settled_statistics_are_the_mean_over_the_last_batches() -> None:
    module = stage()
    norm: nn.BatchNorm2d = module[1]  # type: ignore[assignment]
    batches = [torch.randn(3, 1, 6, 6) + number for number in range(4)]
    module(batches[0])
    activate(module)
    means = []
    for number, batch in enumerate(batches):
        apply(module, Moment(settling=number))
        module(batch)
        means.append(module[0](batch).mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    before = norm.running_mean.clone()  # type: ignore[union-attr]
    apply(module, Moment(norms_frozen=True))
    module(batches[0])
    assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
    assert norm.weight.requires_grad
    apply(module, Moment())
    assert (norm.training, norm.momentum) == (True, 0.1)


def test_steps_freeze_and_biases_snap_with_them() -> None:
    module, x = stage(), torch.randn(3, 1, 6, 6)
    apply(module, Moment(norms_frozen=True, steps_frozen=True))
    assert {quantizer.state for _, quantizer in quantizers(module)} == {"calibrating"}
    module(x)
    activate(module)
    apply(module, Moment(norms_frozen=True, steps_frozen=True))
    assert {quantizer.state for _, quantizer in quantizers(module)} == {"frozen"}
    module(x).sum().backward()
    assert all(quantizer.log_step.grad is None for _, quantizer in quantizers(module))
    assert module[0].weight.grad is not None


def test_a_float_stage_is_left_alone() -> None:
    module = stage(enabled=False)
    apply(module, Moment(settling=0, norms_frozen=True, steps_frozen=True))
    assert module[1].training
    assert module[1].momentum == 0.1


@pytest.mark.parametrize("state", ["calibrating", "active"])
def test_a_committed_state_is_frozen_where_it_is_active(state: str) -> None:
    module = stage()
    if state == "active":
        module(torch.randn(3, 1, 6, 6))
        activate(module)
    buffers: dict[str, Tensor] = dict(module.named_buffers())
    frozen = freeze_in(buffers, quantizer_buffer_names(module))
    codes = {int(tensor) for name, tensor in frozen.items() if name.endswith("state_code")}
    assert codes == ({2} if state == "active" else {0})
    assert all(frozen[name] is tensor for name, tensor in buffers.items() if not name.endswith("state_code"))
