"""The outer optimizer *is* torch.optim, changes nothing in place, and its state survives flattening."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.diloco import outer_optimizer
from distqat.diloco.options import OuterOptimOptions
from distqat.diloco.tensor_digest import state_digest
from distqat.errors import BadContribution, CheckpointError

SHAPES = {"w": (3, 4), "b": (4,), "s": ()}


def reference(options: OuterOptimOptions, params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if options.type == "sgd":
        return torch.optim.SGD(
            params,
            lr=options.sgd_lr,
            momentum=options.sgd_momentum,
            nesterov=options.sgd_nesterov,
            weight_decay=options.sgd_weight_decay,
        )
    kind = torch.optim.AdamW if options.type == "adamw" else torch.optim.Adam
    return kind(
        params,
        lr=options.adam_lr,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_eps,
        weight_decay=options.adam_weight_decay,
    )


@st.composite
def outer_options(draw: st.DrawFn) -> OuterOptimOptions:
    momentum = draw(st.sampled_from([0.0, 0.5, 0.9]))
    return OuterOptimOptions(
        type=draw(st.sampled_from(["sgd", "adam", "adamw"])),
        sgd_lr=draw(st.sampled_from([0.0, 0.07, 0.7, 1.0])),
        sgd_momentum=momentum,
        sgd_nesterov=momentum > 0 and draw(st.booleans()),
        sgd_weight_decay=draw(st.sampled_from([0.0, 0.01])),
        adam_lr=draw(st.sampled_from([0.0, 1e-3, 0.1])),
        adam_weight_decay=draw(st.sampled_from([0.0, 0.1])),
        adam_beta1=draw(st.sampled_from([0.0, 0.9])),
        adam_beta2=draw(st.sampled_from([0.95, 0.999])),
    )


@settings(max_examples=60, deadline=None)
@given(options=outer_options(), seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 12))
def test_trajectory_equals_torch(options: OuterOptimOptions, seed: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    params = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    theirs = {name: torch.nn.Parameter(value.clone()) for name, value in params.items()}
    optimizer = reference(options, list(theirs.values()))
    state = outer_optimizer.init(params)
    for step in range(steps):
        gradient = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        for name, param in theirs.items():
            param.grad = gradient[name].clone()
        optimizer.step()
        params, state = outer_optimizer.update(params, gradient, state, options)
        assert state.step == step + 1
    for name in params:
        assert torch.allclose(params[name], theirs[name], rtol=1e-6, atol=1e-6), name


@settings(max_examples=20, deadline=None)
@given(options=outer_options())
def test_a_discarded_update_leaves_everything_untouched(options: OuterOptimOptions) -> None:
    generator = torch.Generator().manual_seed(5)
    params = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    gradient = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    state = outer_optimizer.update(params, gradient, outer_optimizer.init(params), options)[1]
    before = [state_digest(t) for t in (params, gradient, state.tensors())]
    new_params, new_state = outer_optimizer.update(params, gradient, state, options)
    for value in (*new_params.values(), *(t for t in new_state.tensors().values())):
        value.zero_()
    assert [state_digest(t) for t in (params, gradient, state.tensors())] == before


@settings(max_examples=20, deadline=None)
@given(options=outer_options())
def test_a_flattened_state_goes_on_to_the_bit(options: OuterOptimOptions) -> None:
    params = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    gradient = {name: torch.full(shape, 0.3) for name, shape in SHAPES.items()}
    params, state = outer_optimizer.update(params, gradient, outer_optimizer.init(params), options)
    restored = outer_optimizer.OuterState.from_tensors(state.tensors())
    one, one_state = outer_optimizer.update(params, gradient, state, options)
    two, two_state = outer_optimizer.update(params, gradient, restored, options)
    assert state_digest(one) == state_digest(two)
    assert state_digest(one_state.tensors()) == state_digest(two_state.tensors())


def test_a_trajectory_that_a_person_can_check() -> None:
    """Nesterov 0.5, momentum 0.5, gradient always 1: m = 1, 1.5, 1.75 and d = 1.5, 1.75, 1.875."""
    options = OuterOptimOptions(sgd_lr=0.5, sgd_momentum=0.5)
    params, state = {"w": torch.tensor([4.0])}, outer_optimizer.OuterState()
    seen = []
    for _ in range(3):
        params, state = outer_optimizer.update(params, {"w": torch.tensor([1.0])}, state, options)
        seen.append(params["w"].item())
    assert seen == [3.25, 2.375, 1.4375]


GOLDEN = {
    "sgd": "e741690e206de021",
    "adam": "1aa106f88f1d44b4",
    "adamw": "3bb854b7fd5696b2",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_bits_are_the_same_on_every_processor(name: str) -> None:
    """As numpy computes it by IEEE 754, with any vector units; a fused variant or a sqrt of MKL shows."""
    options = OuterOptimOptions.model_validate(
        {"type": name, "adam_weight_decay": 0.1, "sgd_weight_decay": 0.1, "sgd_momentum": 0.9}
    )
    numbers = (torch.arange(1003) * 7919 % 1009).float()
    params, state = {"w": numbers / 1009}, outer_optimizer.OuterState()
    for step in range(1, 4):
        params, state = outer_optimizer.update(params, {"w": (numbers - 500) / (step * 3001)}, state, options)
    assert state_digest({**params, **state.tensors()})[:16] == GOLDEN[name]


def test_plain_sgd_with_rate_one_lands_on_the_mean_of_the_replicas() -> None:
    options = OuterOptimOptions(sgd_lr=1.0, sgd_momentum=0.0, sgd_nesterov=False)
    params, state = outer_optimizer.update(
        {"w": torch.tensor([4.0])}, {"w": torch.tensor([1.5])}, outer_optimizer.OuterState(), options
    )
    assert params["w"].item() == 2.5
    assert set(state.tensors()) == {"step"}


def test_other_names_shapes_and_dtypes_are_refused() -> None:
    params, options = {"w": torch.ones(2)}, OuterOptimOptions()
    for wrong in ({}, {"v": torch.ones(2)}, {"w": torch.ones(3)}, {"w": torch.ones(2).double()}):
        with pytest.raises(BadContribution):
            outer_optimizer.update(params, wrong, outer_optimizer.OuterState(), options)
    with pytest.raises(BadContribution, match="float32"):
        outer_optimizer.init({"w": torch.ones(2, dtype=torch.bfloat16)})


def test_the_state_of_another_optimizer_is_refused() -> None:
    params = {"w": torch.ones(2)}
    state = outer_optimizer.update(params, params, outer_optimizer.init(params), OuterOptimOptions())[1]
    with pytest.raises(CheckpointError, match="another outer_optim"):
        outer_optimizer.update(params, params, state, OuterOptimOptions(type="adam"))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"step": torch.tensor(1.0)},
        {"step": torch.tensor(-1)},
        {"step": torch.tensor(1), "velocity/w": torch.ones(1)},
        {"step": torch.tensor(1), "momentum/": torch.ones(1)},
        {"step": torch.tensor(1), "momentum/w": torch.ones(1).double()},
    ],
)
def test_tensors_that_are_no_state_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        outer_optimizer.OuterState.from_tensors(wrong)
