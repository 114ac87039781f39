"""What a tokenizer is, and the two kinds: bytes, and those of the tokenizers library."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Protocol

from distqat.errors import DataError

BYTES = "bytes"
CONFIG = "tokenizer_config.json"
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")


class Tokenizer(Protocol):
    """What packing needs to know of a tokenizer."""

    name: str
    size: int
    """Ids lie below this."""

    @property
    def end(self) -> int:
        """The id that ends a document. Raises DataError where none is known."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without marks of begin and end."""


class ByteTokenizer:
    """One id per byte of UTF-8, 0 to 255, and 256 for the end of a document."""

    name = BYTES
    size = 257
    end = 256

    def encode(self, text: str) -> list[int]:
        """The bytes of a text in UTF-8; half a surrogate pair becomes `?`."""
        return list(text.encode("utf-8", errors="replace"))

    def decode(self, ids: list[int]) -> str:
        """Text again; the end of a document becomes an empty line."""
        return b"".join(bytes([i]) if i < self.end else b"\n\n" for i in ids).decode("utf-8", "replace")


class EngineTokenizer:
    """A tokenizer of the tokenizers library; what its file says of cutting and filling up is switched off."""

    def __init__(self, name: str, engine: Any, own_end: str | None = None, end: str | None = None) -> None:
        """`own_end`: the token that its other files name; `end`: the one that the configuration names."""
        self.name = name
        self._engine = engine
        self._own_end, self._end = own_end, end
        engine.no_truncation()
        engine.no_padding()
        if getattr(engine.model, "dropout", None):  # merges left out at random: another text every time
            engine.model.dropout = None
        self.size = max(engine.get_vocab().values(), default=-1) + 1  # numbers may have gaps

    @property
    def end(self) -> int:
        """The id that ends a document. Raises DataError where none is known."""
        names = [self._end] if self._end is not None else [self._own_end, *END_NAMES]
        found = (self._engine.token_to_id(name) for name in names if name)
        number = next((i for i in found if i is not None), None)
        if number is not None:
            return int(number)
        if self._end is not None:
            near = difflib.get_close_matches(self._end, self._engine.get_vocab(), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"data.options.end_token: the tokenizer {self.name!r} has no token {self._end!r}{hint}"
            )
        raise DataError(
            f"the tokenizer {self.name!r} has no token that ends a document: its {CONFIG} names none, and "
            f"there is none of {', '.join(END_NAMES)}; name it in data.options.end_token"
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a text, all of them; half a surrogate pair, which encodes nothing, becomes `?`."""
        whole = text.encode("utf-8", errors="replace").decode("utf-8")
        ids: list[int] = self._engine.encode(whole, add_special_tokens=False).ids
        return ids

    def definition(self) -> dict[str, Any]:
        """What a tokenizer.json has: vocabulary, merges, how text is split."""
        told: dict[str, Any] = json.loads(self._engine.to_str())
        return told

    def save(self, path: Path) -> None:
        """Write what `Tokenizer.from_file` of the tokenizers library reads."""
        self._engine.save(str(path))

    def decode(self, ids: list[int]) -> str:
        """Text again; marks are left out."""
        return str(self._engine.decode(ids))
