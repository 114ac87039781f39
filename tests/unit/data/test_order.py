"""Orders are frozen: a saved position means the same sample for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from distqat.data.order import permutation


def test_golden() -> None:
    assert permutation(0, 0, 0, 8) == [7, 2, 4, 0, 5, 3, 1, 6]
    assert permutation(1, 2, 3, 8) == [2, 4, 3, 6, 1, 0, 5, 7]


@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 1000), length=st.integers(0, 50))
def test_is_a_permutation(seed: int, epoch: int, length: int) -> None:
    assert sorted(permutation(seed, epoch, 0, length)) == list(range(length))


def test_every_part_of_the_key_counts() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32, 0, 0)]
    assert len({tuple(permutation(*key, 100)) for key in keys}) == len(keys)
