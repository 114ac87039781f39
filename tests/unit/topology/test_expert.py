"""UIDs and stage names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.topology.expert import ExpertId


@given(st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True), st.integers(0, 10**9 - 1))
def test_the_uid_reads_back(stage: str, index: int) -> None:
    expert = ExpertId(stage, index)
    assert expert.uid == str(expert) == f"{stage}.0.{index}.0"
    assert ExpertId.parse(expert.uid) == expert


@pytest.mark.parametrize(
    "uid",
    ["", "front", "front.0.0", "front.1.0.0", "front.0.0.1", "front.0.-1.0", "front.0.01.0", ".0.0.0",
     "a.b.0.0.0", "front.0.0.0\n", "front.0.\u0661.0", "front.0.9999999999.0", "fr ont.0.0.0"],
)  # fmt: skip
def test_other_texts_are_no_uid(uid: str) -> None:
    with pytest.raises(ValueError, match="not an expert UID"):
        ExpertId.parse(uid)


def test_an_expert_that_no_uid_could_name_does_not_exist() -> None:
    with pytest.raises(ValueError, match="letters"):
        ExpertId("a.b", 0)
    with pytest.raises(ValueError, match="index -1"):
        ExpertId("front", -1)


def test_experts_sort_by_stage_and_number() -> None:
    assert sorted([ExpertId("b", 0), ExpertId("a", 10), ExpertId("a", 9)]) == [
        ExpertId("a", 9), ExpertId("a", 10), ExpertId("b", 0),
    ]  # fmt: skip
