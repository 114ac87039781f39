from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from distqat.checkpoint import newest_common


@dataclass(frozen=True)
class Offer:
    mark: str
    generation: int
    round: int
    step: int


def offers(*marks: str) -> list[Offer]:
    """`mark generation round step`."""
    return [Offer(m, int(g), int(r), int(s)) for m, g, r, s in (text.split() for text in marks)]


def test_the_newest_that_all_have() -> None:
    front = offers("a 0 1 10", "b 0 1 14", "c 0 2 21")
    back = offers("b 0 2 20", "a 0 1 12")
    assert newest_common({"front": front, "back": back}, ["c", "b", "a"]) == "b"
    assert newest_common({"front": front, "back": back}, ["c", "a"]) == "a"
    assert newest_common({"front": front, "back": back}, ["c"]) is None
    assert newest_common({"front": front, "back": []}, ["c", "b", "a"]) is None
    assert newest_common({"front": front}, ["a", "b", "c"]) == "c"
    assert newest_common({}, ["a"]) is None


def test_a_later_generation_is_newer_whatever_its_round() -> None:
    stages = {"front": offers("a 0 9 99", "b 1 2 20"), "back": offers("a 0 9 99", "b 1 2 20")}
    assert newest_common(stages, ["a", "b"]) == "b"


def test_no_stage_comes_first() -> None:
    """Marks of two pipelines, whose replicas commit on their own."""
    front, back = offers("a 0 2 20", "b 0 1 10"), offers("a 0 1 10", "b 0 3 30")
    assert newest_common({"front": front, "back": back}, ["a", "b"]) == "b"
    assert newest_common({"back": back, "front": front}, ["a", "b"]) == "b"


def test_of_a_tie_the_trainers_newest() -> None:
    assert newest_common({"front": offers("a 0 1 10", "b 0 1 10")}, ["b", "a"]) == "b"


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=1, max_size=8),
    st.lists(st.sets(st.integers(0, 7)), min_size=4, max_size=4),
    st.randoms(),
)
def test_cuts_that_follow_each_other_are_told_in_order(
    gaps: list[list[int]], lost: Sequence[set[int]], random: Random
) -> None:
    """Every mark is later than the one before at each stage, none earlier; some parts were never written."""
    places = {stage: [0, 0, 0] for stage in ("front", "middle", "back")}
    all_offers: dict[str, list[Offer]] = {stage: [] for stage in places}
    for number, row in enumerate(gaps):
        for index, (stage, gap) in enumerate(zip(places, row, strict=True)):
            places[stage][1] += gap
            places[stage][2] += 1
            if number not in lost[index]:
                all_offers[stage].append(Offer(f"m{number}", *places[stage]))
    parts = [f"m{number}" for number in range(len(gaps)) if number not in lost[3]]
    shuffled = list(parts)
    random.shuffle(shuffled)
    whole = [number for number in range(len(gaps)) if not any(number in each for each in lost)]
    assert newest_common(all_offers, shuffled) == (f"m{max(whole)}" if whole else None)
