from __future__ import annotations

from distqat.checkpoint.manifest import PrivatePart, chosen, renewed


def part(expert: str, step: int, mark: str | None) -> PrivatePart:
    return PrivatePart(expert=expert, file=f"{expert}-{step}-{mark}", step=step, mark=mark)


STANDING = [part("a", 1, "m"), part("a", 1, None), part("b", 1, "m"), part("a", 2, "n")]


def test_a_part_replaces_its_own_mark_alone() -> None:
    new = part("a", 3, "m")
    assert renewed(STANDING, [new]) == [*STANDING[1:], new]
    new = part("a", 4, None)
    assert renewed(STANDING, [new]) == [STANDING[0], *STANDING[2:], new]
    assert renewed(STANDING, []) == STANDING


def test_a_third_mark_displaces_the_first_written() -> None:
    new = part("a", 0, "o")
    assert renewed(STANDING, [new]) == [*STANDING[1:], new]


def test_the_last_written_is_chosen() -> None:
    assert chosen(STANDING, None, None) == {"a": STANDING[3], "b": STANDING[2]}
    assert chosen(STANDING, None, "m") == {"a": STANDING[0], "b": STANDING[2]}
    assert chosen(STANDING, "b", None) == {"b": STANDING[2]}
    assert chosen(STANDING, "b", "n") == chosen(STANDING, "", None) == {}
