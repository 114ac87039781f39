from __future__ import annotations

from typing import Any

import pytest

from distqat.errors import ModelError, UnknownName
from distqat.models.block_chain import BlockChain

CHAIN = BlockChain([f"b{i}" for i in range(8)], [1.0] * 8, before=2.0)


def ends(stage: Any, *place: Any) -> tuple[int, int]:
    part = CHAIN.part(stage, *place)
    assert part.first == (part.start == 0)
    assert part.last == (part.stop == 8)
    return part.start, part.stop


def test_a_full_stage_is_everything() -> None:
    assert ends("full") == ends("full", None, 0, 1) == (0, 8)


@pytest.mark.parametrize("names", [("front", "back"), ("head", "tail")])
def test_two_stages_are_told_by_their_names(names: tuple[str, str]) -> None:
    assert [ends(name) for name in names] == [(0, 3), (3, 8)]
    assert [ends(name, None, 0, 1) for name in names] == [(0, 3), (3, 8)]  # beside stages of another model
    assert [ends(name, None, i, 2) for i, name in enumerate(names)] == [(0, 3), (3, 8)]


def test_stages_of_a_pipeline_are_balanced_with_what_comes_on_top() -> None:
    of_four = [ends(name, None, i, 4) for i, name in enumerate(("head", "body", "body", "tail"))]
    assert of_four == [(0, 1), (1, 3), (3, 5), (5, 8)]


def test_a_given_cut_is_exact() -> None:
    cut = ["b6", 7]
    assert [ends(s, cut, i, 3) for i, s in enumerate(("head", "body", "tail"))] == [(0, 6), (6, 7), (7, 8)]
    assert ends("back", ["b1"]) == (1, 8)
    assert ends("body", cut, 1) == (6, 7)  # the cut tells how many


@pytest.mark.parametrize("cut", [["b3", "b3"], ["b4", "b2"], [0], [8], [-1]])
def test_cuts_that_leave_a_stage_empty_are_refused(cut: list[Any]) -> None:
    with pytest.raises(ModelError, match="rising order"):
        CHAIN.part("front", cut)


def test_an_unknown_block_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'b7'"):
        CHAIN.part("front", ["b77"])


@pytest.mark.parametrize(
    ("stage", "place", "says"),
    [
        ("full", (["b2"],), "a full stage is not cut"),
        ("front", ("b2",), "must be a list"),
        ("front", ([],), "must be a list"),
        ("front", (["b2"], 0, 3), "makes 2 stages, the pipeline has 3"),
        ("body", (), "one of at least three"),
        ("body", (None, 0, 3), "a body is not stage 1 of 3"),
        ("head", (None, 1, 3), "a head is not stage 2 of 3"),
        ("tail", (None, 1, 3), "a tail is not stage 2 of 3"),
        ("head", (None, 0, 9), "8 blocks cannot be cut into 9"),
    ],
)
def test_what_cannot_be_a_stage_is_refused(stage: Any, place: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        CHAIN.part(stage, *place)
