"""Averaging: order, weights, what is refused, and the merge."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqat.diloco.pseudo_gradient import (
    capped_weights,
    check_contribution,
    mean_buffers,
    merge,
    norm_bound,
    pseudo_gradient,
    schema_of,
    weighted_mean,
)
from distqat.diloco.tensor_digest import state_digest
from distqat.errors import BadContribution


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(5, 3, generator=generator), "b": torch.randn(3, generator=generator)}


def test_pseudo_gradient_points_back_to_the_anchor() -> None:
    gradient = pseudo_gradient({"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])})
    assert gradient["w"].tolist() == [2.0]
    with pytest.raises(BadContribution, match="'v'"):
        pseudo_gradient({"w": torch.ones(1)}, {"v": torch.ones(1)})


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0.01, 100)), min_size=1, max_size=6))
def test_weighted_mean_equals_the_float64_mean(members: list[tuple[int, float]]) -> None:
    contributions, weights = [tensors(seed) for seed, _ in members], [weight for _, weight in members]
    mean = weighted_mean(contributions, weights)
    for name in mean:
        exact = sum(c[name].double() * w for c, w in zip(contributions, weights, strict=True)) / sum(weights)
        assert torch.allclose(mean[name].double(), exact, atol=1e-5)


def test_weighted_mean_is_separate_multiply_and_add_in_the_given_order() -> None:
    one, two, three = tensors(1), tensors(2), tensors(3)
    by_hand = {}
    for name in one:
        total = one[name] * 0.3
        total = total + two[name] * 0.1
        by_hand[name] = total + three[name] * 0.6
    before = state_digest(one)
    assert state_digest(weighted_mean([one, two, three], [0.3, 0.1, 0.6])) == state_digest(by_hand)
    assert state_digest(one) == before


def test_a_lone_member_gets_its_own_delta_back_to_the_bit() -> None:
    assert state_digest(weighted_mean([tensors(4)], capped_weights([17]))) == state_digest(tensors(4))


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.9], [1.0, math.nan], [1.0, math.inf], [0.0, 0.0]])
def test_false_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(BadContribution, match="weights"):
        weighted_mean([tensors(1), tensors(2)], weights)


def test_check_contribution_gives_the_norm() -> None:
    delta = {"w": torch.tensor([3.0]), "b": torch.tensor([4.0]), "empty": torch.zeros(0)}
    assert check_contribution(delta, schema_of(delta)) == 5.0
    huge = {"w": torch.full((4,), 3e38)}
    assert check_contribution(huge, schema_of(huge)) == pytest.approx(6e38)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"w": torch.ones(5, 3)}, "'b'"),
        ({**tensors(1), "more": torch.ones(1)}, "'more'"),
        ({**tensors(1), "w": torch.ones(3, 5)}, "'w'"),
        ({**tensors(1), "b": torch.ones(3).double()}, "'b'"),
        ({**tensors(1), "b": torch.tensor([1.0, math.nan, 1.0])}, "'b'"),
        ({**tensors(1), "b": torch.tensor([1.0, math.inf, 1.0])}, "'b'"),
        ({**tensors(1), "b": torch.full((3,), 1e6)}, "'b'"),
    ],
)
def test_a_bad_contribution_is_refused_by_the_name_of_the_tensor(
    wrong: dict[str, torch.Tensor], named: str
) -> None:
    with pytest.raises(BadContribution, match=named):
        check_contribution(wrong, schema_of(tensors(1)), max_norm=100.0)


def test_norm_bound_ignores_outliers_and_idle_members() -> None:
    assert norm_bound([1.0, 1.2, 1e6], 10) == 12.0
    assert norm_bound([1.0, 1e6], 10) == 10.0
    assert norm_bound([0.0, 0.0, 2.0], 10) == 20.0
    assert norm_bound([0.0], 10) == math.inf
    assert norm_bound([], 10) == math.inf


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=8))
def test_weights_sum_to_one_and_one_false_count_is_capped(samples: list[int]) -> None:
    weights = capped_weights(samples)
    assert math.fsum(weights) == pytest.approx(1.0)
    assert all(0 <= weight <= 1 for weight in weights)
    forged = capped_weights([100, 100, 100, 10**12])
    assert forged[3] == pytest.approx(4 / 7)
    assert all(
        (a <= b) == (wa <= wb) or wa == wb
        for a, wa in zip(samples, weights, strict=True)
        for b, wb in zip(samples, weights, strict=True)
    )


def test_weights_follow_samples_below_the_cap() -> None:
    assert capped_weights([10, 30]) == [0.25, 0.75]
    assert capped_weights([0, 5]) == [0.0, 1.0]
    assert capped_weights([0, 0]) == [0.5, 0.5]
    for wrong in ([], [1, -1]):
        with pytest.raises(BadContribution, match="sample counts"):
            capped_weights(wrong)


@given(st.integers(0, 10**6))
def test_merge_is_the_anchor_to_the_bit_where_nothing_moved(seed: int) -> None:
    anchor, base = tensors(seed), tensors(seed + 1)
    anchor["b"][0] = -0.0
    assert state_digest(merge(anchor, {n: t.clone() for n, t in base.items()}, base)) == state_digest(anchor)


def test_merge_keeps_the_steps_taken_since_the_snapshot() -> None:
    merged = merge({"w": torch.tensor([10.0])}, {"w": torch.tensor([3.0])}, {"w": torch.tensor([2.5])})
    assert merged["w"].tolist() == [10.5]


def test_buffers_floats_by_mean_integers_by_maximum() -> None:
    one = {
        "running_mean": torch.tensor([1.0]),
        "num_batches_tracked": torch.tensor(5),
        "q.log_step": torch.log(torch.tensor(1.0)),
        "active": torch.tensor(False),
        "half": torch.tensor([1.0], dtype=torch.float16),
        "double": torch.tensor([1.0], dtype=torch.float64),
    }
    two = {
        "running_mean": torch.tensor([3.0]),
        "num_batches_tracked": torch.tensor(9),
        "q.log_step": torch.log(torch.tensor(4.0)),
        "active": torch.tensor(True),
        "half": torch.tensor([2.0], dtype=torch.float16),
        "double": torch.tensor([2.0], dtype=torch.float64),
    }
    mean = mean_buffers([one, two], [1.0, 1.0])
    assert {name: value.dtype for name, value in mean.items()} == {n: v.dtype for n, v in one.items()}
    assert mean["running_mean"].item() == 2.0
    assert mean["num_batches_tracked"].item() == 9
    assert mean["q.log_step"].exp().item() == pytest.approx(2.0)
    assert mean["active"].item() is True
    assert mean["half"].item() == mean["double"].item() == 1.5
    assert mean_buffers([{}, {}], [1.0, 1.0]) == {}


@pytest.mark.parametrize("wrong", [torch.ones(2), torch.ones(1).double(), torch.tensor([math.nan])])
def test_a_bad_buffer_is_refused_by_name(wrong: torch.Tensor) -> None:
    with pytest.raises(BadContribution, match="running_mean"):
        mean_buffers([{"running_mean": torch.ones(1)}, {"running_mean": wrong}], [1.0, 1.0])
