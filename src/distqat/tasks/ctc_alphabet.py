"""Characters as the classes of a CTC head, and how far one text is from another."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from distqat.errors import TaskError

BLANK = 0
SPECIAL = 4  # blank, begin, end, unknown: as in the published vocabularies of wav2vec 2.0
WAV2VEC2 = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"
"""Characters in the order of `facebook/wav2vec2-base-960h`; `|` stands between two words."""
DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")


class Alphabet:
    """Text to class ids and back: class 0 is CTC's blank, the first character of `characters` is class 4."""

    def __init__(self, characters: str = WAV2VEC2) -> None:
        """Raises TaskError where a character occurs twice, or `|`, the mark between words, is missing."""
        if len(set(characters)) != len(characters) or "|" not in characters or " " in characters:
            raise TaskError(
                f"the alphabet {characters!r} must hold each character once, and '|' in place of the blank "
                "between words"
            )
        self._ids = {character: number for number, character in enumerate(characters, SPECIAL)}
        self._characters = {number: character for character, number in self._ids.items()}
        self._speaks_digits = not set("0123456789") & set(characters)

    def __len__(self) -> int:
        """Classes, the special ones among them."""
        return SPECIAL + len(self._ids)

    def encode(self, text: str) -> list[int]:
        """Class ids; what is not in the alphabet (punctuation, accents on letters of it) is left out.

        A letter is looked up as it is, then as a capital, then as a small one; a digit that is not in the
        alphabet is spelled out, digit by digit: `12` is ONE TWO.
        """
        if self._speaks_digits:
            text = "".join(f" {DIGITS[int(c)]} " if c in "0123456789" else c for c in text)
        plain = unicodedata.normalize("NFC", text)
        plain = plain.replace("-", " ").replace("\u2019", "'").replace("|", " ")
        ids: list[int] = []
        for word in ([i for c in word for i in self._spelled(c)] for word in plain.split()):
            if word:
                ids += [self._ids["|"], *word] if ids else word
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of class ids; special classes are silent."""
        return "".join(self._characters.get(i, "") for i in ids).replace("|", " ").strip()

    def _spelled(self, character: str) -> list[int]:
        """The character itself, else the letters that it is made of, without their accents."""
        found = self._id(character)
        if found is not None:
            return [found]
        parts = (self._id(part) for part in unicodedata.normalize("NFKD", character))
        return [part for part in parts if part is not None]

    def _id(self, character: str) -> int | None:
        for form in (character, character.upper(), character.lower()):
            if form in self._ids:
                return self._ids[form]
        return None


def collapse(classes: Sequence[int]) -> list[int]:
    """The best class of each frame to what is said: repeats merged, then blanks removed (Graves, 2006)."""
    before = [BLANK, *classes][:-1]
    return [now for now, last in zip(classes, before, strict=True) if now not in (last, BLANK)]


def edit_distance(heard: Sequence[int], said: Sequence[int]) -> int:
    """Fewest insertions, deletions and substitutions that turn one sequence into the other (Levenshtein)."""
    places = np.arange(len(said) + 1)
    target = np.asarray(said, dtype=np.int64)
    row = places
    for count, symbol in enumerate(heard, start=1):
        kept = np.minimum(row[1:] + 1, row[:-1] + (target != symbol))
        row = np.minimum.accumulate(np.concatenate(([count], kept)) - places) + places  # and insertions
    return int(row[-1])
