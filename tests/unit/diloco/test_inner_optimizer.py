"""The inner optimizer is torch's, with three groups; its rate follows the schedule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distqat.diloco.inner_optimizer import build_inner_optimizer, learning_rate, set_learning_rate
from distqat.diloco.options import DilocoOptions, InnerOptimOptions
from distqat.quant import WeightQuantizer, weight_step_names


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_type_and_values_reach_torch(name: str, kind: type[torch.optim.Optimizer]) -> None:
    options = InnerOptimOptions.model_validate(
        {"type": name, "adam_lr": 0.01, "sgd_lr": 0.01, "adam_weight_decay": 0.2, "sgd_weight_decay": 0.2}
    )
    optimizer = build_inner_optimizer(nn.Linear(2, 2), options, {"bias"})
    assert type(optimizer) is kind
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 0]
    assert all(group["lr"] == 0.01 for group in optimizer.param_groups)


def test_adam_decay_is_l2_and_adamw_decay_is_decoupled() -> None:
    after = {}
    for name in ("adam", "adamw"):
        module = nn.Linear(1, 1)
        nn.init.constant_(module.weight, 1.0)
        nn.init.constant_(module.bias, 1.0)
        options = InnerOptimOptions.model_validate({"type": name, "adam_lr": 0.1, "adam_weight_decay": 0.5})
        optimizer = build_inner_optimizer(module, options, {"bias"})
        module.weight.grad, module.bias.grad = torch.zeros(1, 1), torch.zeros(1)
        optimizer.step()
        after[name] = module.weight.item()
        assert module.bias.item() == 1.0
    assert after["adam"] == pytest.approx(0.9)  # the decay is the whole gradient: one normalised step
    assert after["adamw"] == pytest.approx(1.0 - 0.1 * 0.5)


def test_frozen_parameters_and_empty_groups() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    optimizer = build_inner_optimizer(module, InnerOptimOptions(), {"bias"})
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 0, 0]
    with pytest.raises(ValueError, match="'wieght'"):
        build_inner_optimizer(module, InnerOptimOptions(), {"wieght"})


def test_rate_zero_moves_nothing() -> None:
    for name in ("adam", "adamw", "sgd"):
        module = nn.Linear(3, 3)
        before = [p.detach().clone() for p in module.parameters()]
        options = InnerOptimOptions.model_validate({"type": name, "adam_lr": 0, "sgd_lr": 0})
        optimizer = build_inner_optimizer(module, options)
        for _ in range(3):
            module(torch.ones(2, 3)).sum().backward()
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def rates(schedule: str, warmup: int, steps: int) -> list[float]:
    options = DilocoOptions.model_validate({"lr_schedule": schedule, "warmup_steps": warmup})
    return [learning_rate(step, steps, 2.0, options) for step in range(steps + 5)]


def test_warm_up_then_constant() -> None:
    assert rates("constant", 4, 8)[:6] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert rates("constant", 0, 3)[0] == 2.0


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_decay_starts_at_the_rate_and_ends_at_a_tenth(schedule: str, warmup: int) -> None:
    seen = rates(schedule, warmup, 41)
    assert seen[warmup] == pytest.approx(2.0)
    assert seen[40] == pytest.approx(0.2)
    assert all(rate == pytest.approx(0.2) for rate in seen[40:])
    decaying = seen[warmup:41]
    assert decaying == sorted(decaying, reverse=True)


@pytest.mark.parametrize("warmup", [0, 5, 25])
def test_a_cooldown_begins_where_the_run_is_quantized(warmup: int) -> None:
    options = DilocoOptions(lr_schedule="cooldown", warmup_steps=warmup)
    seen = [learning_rate(step, 41, 2.0, options, in_float=20) for step in range(45)]
    start = max(20, warmup)
    assert seen[warmup : start + 1] == [2.0] * (start + 1 - warmup)
    assert seen[start : start + 3] == sorted(set(seen[start : start + 3]), reverse=True)
    assert seen[(start + 40) // 2] == pytest.approx(1.1, abs=0.06)
    assert seen[40:] == [pytest.approx(0.2)] * 5
    assert rates("cooldown", warmup, 41) == rates("linear", warmup, 41), "without a part in float"


def test_schedules_differ_in_the_middle_and_survive_a_run_of_warm_up_only() -> None:
    assert rates("linear", 0, 41)[20] == pytest.approx(1.1)
    assert rates("cosine", 0, 41)[10] > rates("linear", 0, 41)[10]
    assert max(rates("cosine", 10, 4)) <= 2.0


def test_a_decaying_schedule_ends_where_lr_final_says() -> None:
    options = DilocoOptions.model_validate({"lr_schedule": "cosine", "lr_final": 0.0, "warmup_steps": 0})
    assert learning_rate(0, 11, 2.0, options) == 2.0
    assert learning_rate(5, 11, 2.0, options) == pytest.approx(1.0)
    assert [learning_rate(step, 11, 2.0, options) for step in (10, 15)] == [0.0, 0.0]


def test_set_learning_rate_reaches_every_group() -> None:
    optimizer = build_inner_optimizer(nn.Linear(2, 2), InnerOptimOptions(), {"bias"})
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5, 5.0]


@pytest.mark.parametrize(("kind", "ratio"), [("adam", 10.0), ("adamw", 10.0), ("sgd", 1.0)])
def test_steps_of_weights_learn_faster_under_adam(kind: str, ratio: float) -> None:
    options = InnerOptimOptions.model_validate({"type": kind, "adam_weight_decay": 0.1})
    module = nn.Linear(2, 2)
    optimizer = build_inner_optimizer(module, options, {"bias"}, {"bias"})
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5, 0.5 * ratio]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 0, 1]
    assert optimizer.param_groups[2]["weight_decay"] == 0.0


def test_a_step_follows_weights_that_outgrow_their_range() -> None:
    """From 0.05 to 1 in 60 steps: at the rate of the weights themselves the step would cut them off."""
    torch.manual_seed(0)
    target, x = torch.randn(4, 8), torch.randn(64, 8)
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.randn(4, 8) * 0.02)
    quantizer = WeightQuantizer("layer.weight_quant", holder.weight, bits=8, axis=0)
    quantizer.begin(quantizer.initial_step(holder.weight))
    holder.quantizer = quantizer
    options = InnerOptimOptions.model_validate({"type": "adam", "adam_lr": 0.05, "adam_weight_decay": 0.0})
    optimizer = build_inner_optimizer(holder, options, frozenset(), weight_step_names(holder))
    for _ in range(60):
        optimizer.zero_grad()
        ((x @ (quantizer(holder.weight) - target).T) ** 2).mean().backward()
        set_learning_rate(optimizer, 0.05)
        optimizer.step()
    assert float(((quantizer(holder.weight) - target) ** 2).mean().detach()) < 0.05
