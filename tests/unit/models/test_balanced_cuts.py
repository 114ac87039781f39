"""Against all cuts there are."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.errors import ModelError
from distqat.models.balanced_cuts import balanced_cuts, part_costs

COSTS = st.lists(st.integers(0, 50), min_size=1, max_size=9)
FIXED = st.integers(0, 60)


@given(COSTS, st.data(), FIXED, FIXED)
def test_no_other_cut_has_a_smaller_largest_part(
    costs: list[int], data: st.DataObject, first: int, last: int
) -> None:
    parts = data.draw(st.integers(1, len(costs)))
    cuts = balanced_cuts(costs, parts, first, last)
    assert len(cuts) == parts - 1
    assert all(a < b for a, b in zip([0, *cuts], [*cuts, len(costs)], strict=True))

    def rank(cut: tuple[int, ...]) -> tuple[float, float]:
        sums = part_costs(costs, cut, first, last)
        return max(sums), sum(part**2 for part in sums)

    assert rank(tuple(cuts)) == min(map(rank, combinations(range(1, len(costs)), parts - 1)))


@pytest.mark.parametrize(
    ("costs", "parts", "cuts"),
    [
        ([1] * 12, 3, [4, 8]),
        ([1] * 6, 1, []),
        ([1, 1, 1], 3, [1, 2]),
        ([5, 1, 1, 1, 1, 1], 2, [1]),
        ([1] * 12, 5, [2, 4, 6, 9]),  # as even as can be, not only in the largest part
    ],
)
def test_cuts(costs: list[int], parts: int, cuts: list[int]) -> None:
    assert balanced_cuts(costs, parts) == cuts


def test_what_comes_on_top_of_the_ends_moves_the_cuts() -> None:
    assert balanced_cuts([1] * 12, 2, fixed_first=4) == [4]
    assert balanced_cuts([1] * 12, 2, fixed_last=4) == [8]
    assert part_costs([1] * 12, [8], fixed_last=4) == [8, 8]


def test_a_fifth_of_a_large_model_is_found_at_once() -> None:
    costs = [1 + (i % 3) * 0.1 for i in range(96)]
    sums = part_costs(costs, balanced_cuts(costs, 5))
    assert max(sums) <= sum(costs) / 5 + max(costs)


@pytest.mark.parametrize("parts", [0, 4, -1])
def test_more_parts_than_blocks_are_refused(parts: int) -> None:
    with pytest.raises(ModelError, match="3 blocks cannot be cut"):
        balanced_cuts([1, 1, 1], parts)


@pytest.mark.parametrize("cost", [-1.0, math.inf, math.nan])
def test_costs_that_do_not_add_up_are_refused(cost: float) -> None:
    with pytest.raises(ModelError, match="finite"):
        balanced_cuts([1.0, cost], 2)
    with pytest.raises(ModelError, match="finite"):
        balanced_cuts([1.0, 1.0], 2, fixed_last=cost)
