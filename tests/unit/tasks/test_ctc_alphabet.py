"""Characters, classes and distances against plain definitions."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.errors import TaskError
from distqat.tasks.ctc_alphabet import BLANK, WAV2VEC2, Alphabet, collapse, edit_distance

ALPHABET = Alphabet()
SYMBOLS = st.lists(st.integers(1, 4), max_size=9)


def test_the_classes_are_those_of_the_published_models() -> None:
    """`vocab.json` of facebook/wav2vec2-base-960h: <pad> <s> </s> <unk> | E T A ... Z."""
    assert len(ALPHABET) == 32
    assert ALPHABET.encode("e t'z") == [5, 4, 6, 27, 31]
    assert sorted(WAV2VEC2.replace("|", "").replace("'", "")) == [chr(c) for c in range(65, 91)]


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("Thank you.", "THANK YOU"),
        ("  Call-Forward,\ton busy! ", "CALL FORWARD ON BUSY"),
        ("Café at 2, 10", "CAFE AT TWO ONE ZERO"),
        ("it’s Zoë|", "IT'S ZOE"),
        ("?!", ""),
    ],
)
def test_what_is_said(text: str, heard: str) -> None:
    assert ALPHABET.decode(ALPHABET.encode(text)) == heard


def test_an_alphabet_of_ones_own() -> None:
    own = Alphabet("|abc1")
    assert (len(own), own.encode("A 1b")) == (9, [5, 4, 8, 6])
    german = Alphabet("|aäou")
    assert german.decode(german.encode("Ä o\u0308 à")) == "ä o a"
    for wrong in ("abc", "|aa", "| a"):
        with pytest.raises(TaskError, match="each character once"):
            Alphabet(wrong)


@given(st.text(alphabet="ABC '", max_size=20))
def test_known_text_comes_back(text: str) -> None:
    assert ALPHABET.decode(ALPHABET.encode(text)) == " ".join(text.split())


@given(SYMBOLS, SYMBOLS)
def test_distance_is_the_recursive_one(heard: list[int], said: list[int]) -> None:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
            distance(i - 1, j - 1) + (heard[i - 1] != said[j - 1]),
        )

    assert edit_distance(heard, said) == distance(len(heard), len(said))


@given(SYMBOLS, st.data())
def test_an_alignment_collapses_to_its_text(said: list[int], data: st.DataObject) -> None:
    frames: list[int] = []
    for place, symbol in enumerate(said):
        blanks = 1 if place and said[place - 1] == symbol else 0
        frames += [BLANK] * data.draw(st.integers(blanks, blanks + 2))
        frames += [symbol] * data.draw(st.integers(1, 3))
    assert collapse(frames) == said
