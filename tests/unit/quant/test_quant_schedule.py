"""The end of a run: steps of quantizers stand, then weights do, at the same step on every replica."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from distqat.diloco.options import DilocoOptions
from distqat.quant import (
    QuantOptions,
    activate,
    freeze_in,
    quantize_module,
    quantizer_buffer_names,
    quantizers,
)
from distqat.quant.options import WarmupOptions
from distqat.quant.quant_schedule import (
    FEWEST_ROUNDS,
    PHASES,
    ScheduleMoment,
    apply,
    float_rounds,
    measures,
    moment,
)


def stage(*, enabled: bool = True) -> nn.Sequential:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    quantize_module(module, QuantOptions(enabled=enabled), stage="full", first=True, last=True)
    return module


def warmup(share: float, batches: int = 4) -> WarmupOptions:
    return WarmupOptions(freeze_bn_last=share, calibrate_batches=batches)


def test_the_last_twentieth_by_hand() -> None:
    moments = [moment(step, 100, warmup(0.1)) for step in range(101)]
    assert [step for step, now in enumerate(moments) if now.steps_frozen] == list(range(95, 101))
    assert not any(now.measuring for now in moments)
    assert moment(7, 100, warmup(0.1), measuring=True) == ScheduleMoment(steps_frozen=True, measuring=True)


@given(total=st.integers(1, 500), share=st.floats(0, 0.99), batches=st.integers(1, 20))
def test_nothing_thaws(total: int, share: float, batches: int) -> None:
    moments = [moment(step, total, warmup(share, batches)) for step in range(total)]
    for before, after in itertools.pairwise(moments):
        assert before.steps_frozen <= after.steps_frozen
    assert sum(now.steps_frozen for now in moments) == int(total * share) // 2


def test_no_share_is_never() -> None:
    assert {moment(step, 50, warmup(0)) for step in range(50)} == {ScheduleMoment()}
    assert not measures(50, warmup(0))


def test_a_run_of_few_rounds_trains_in_all_of_them() -> None:
    assert [measures(rounds, warmup(0.1)) for rounds in (1, FEWEST_ROUNDS - 1)] == [False, False]
    assert measures(FEWEST_ROUNDS, warmup(0.1))


@pytest.mark.parametrize(
    ("share", "rounds", "freeze", "in_float"),
    [
        (0.0, 10, 0.1, 0),
        (0.7, 10, 0.1, 7),
        (0.25, 10, 0.1, 3),  # to the nearest
        (0.04, 10, 0.1, 0),
        (0.99, 10, 0.1, 8),  # steps freeze with round 9, in which statistics are measured next
        (0.99, 10, 0.0, 9),
        (0.9, 40, 0.3, 33),  # 34 of 40 freezes them
        (0.7, 3, 0.1, 2),
        (0.7, 2, 0.1, 1),
        (0.7, 1, 0.1, 0),  # one round has no part in float
    ],
)
def test_rounds_in_float_leave_one_for_learning_steps(
    share: float, rounds: int, freeze: float, in_float: int
) -> None:
    options = WarmupOptions(float_share=share, freeze_bn_last=freeze)
    assert float_rounds(DilocoOptions(outer_steps=rounds, inner_steps=10), options) == in_float


@given(
    rounds=st.integers(1, 60),
    inner=st.integers(1, 40),
    share=st.floats(0, 0.99),
    freeze=st.floats(0, 0.99),
)
def test_steps_learn_for_a_round_before_they_are_frozen(
    rounds: int, inner: int, share: float, freeze: float
) -> None:
    options = WarmupOptions(float_share=share, freeze_bn_last=freeze)
    diloco = DilocoOptions(outer_steps=rounds, inner_steps=inner)
    first = float_rounds(diloco, options)
    assert 0 <= first < rounds
    if first:
        last = measures(rounds, options) and first >= rounds - 1
        assert not moment(first * inner, diloco.total_steps, options, measuring=last).steps_frozen


def test_phases_have_names_in_their_order() -> None:
    moments = (
        ScheduleMoment(in_float=True),
        ScheduleMoment(),
        ScheduleMoment(steps_frozen=True),
        ScheduleMoment(steps_frozen=True, measuring=True),
    )
    assert tuple(now.phase for now in moments) == PHASES


def test_norms_follow_their_batches_until_weights_stand() -> None:
    module = stage()
    norm: nn.BatchNorm2d = module[1]  # type: ignore[assignment]
    batches = [torch.randn(3, 1, 6, 6) + number for number in range(4)]
    module(batches[0])
    activate(module)
    apply(module, ScheduleMoment(steps_frozen=True))
    assert (norm.training, norm.momentum) == (True, 0.1)
    norm.num_batches_tracked.zero_()  # type: ignore[union-attr]
    means = []
    for batch in batches:
        apply(module, ScheduleMoment(steps_frozen=True, measuring=True))
        means.append(module[0](batch).mean(dim=(0, 2, 3)))
        module(batch)
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    assert norm.training  # what is behind a norm learns nothing from constants: nothing learns
    apply(module, ScheduleMoment())
    assert norm.momentum == 0.1


def test_steps_freeze_and_biases_snap_with_them() -> None:
    module, x = stage(), torch.randn(3, 1, 6, 6)
    apply(module, ScheduleMoment(steps_frozen=True))
    assert {quantizer.state for _, quantizer in quantizers(module)} == {"calibrating"}
    module(x)
    activate(module)
    apply(module, ScheduleMoment(steps_frozen=True))
    assert {quantizer.state for _, quantizer in quantizers(module)} == {"frozen"}
    module(x).sum().backward()
    assert all(quantizer.log_step.grad is None for _, quantizer in quantizers(module))
    assert module[0].weight.grad is not None


def test_a_float_stage_measures_as_well() -> None:
    module = stage(enabled=False)
    apply(module, ScheduleMoment(steps_frozen=True, measuring=True))
    assert module[1].training
    assert module[1].momentum is None


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
