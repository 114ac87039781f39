"""Text to token ids: bytes, or a tokenizer of the hub or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from distqat.errors import DataError, HubUnavailable

BYTES = "bytes"
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")


class Tokenizer(Protocol):
    """What packing needs to know of a tokenizer."""

    name: str
    size: int
    """Ids lie below this."""
    end: int
    """The id that ends a document."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without marks of begin and end."""


class ByteTokenizer:
    """One id per byte of UTF-8, 0 to 255, and 256 for the end of a document."""

    name = BYTES
    size = 257
    end = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="replace"))

    def decode(self, ids: list[int]) -> str:
        """Text again; the end of a document becomes an empty line."""
        return b"".join(bytes([i]) if i < self.end else b"\n\n" for i in ids).decode("utf-8", "replace")


class FastTokenizer:
    """A `tokenizer.json` of the tokenizers library."""

    def __init__(self, name: str, path: Path) -> None:
        from tokenizers import Tokenizer as Engine

        self.name = name
        try:
            self._engine: Any = Engine.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower for a file that it cannot read
            raise DataError(f"the tokenizer {name!r} cannot be read from {path}: {error}") from error
        self.size = int(self._engine.get_vocab_size())
        end = next((i for i in map(self._engine.token_to_id, END_NAMES) if i is not None), None)
        if end is None:
            raise DataError(
                f"the tokenizer {name!r} has no token that ends a document: {', '.join(END_NAMES)}"
            )
        self.end = int(end)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
        return ids


def open_tokenizer(name: str) -> Tokenizer:
    """`bytes`, a folder with a tokenizer.json, or a model on the hub.

    Raises HubUnavailable where a hub name is out of reach, DataError where there is no such tokenizer.
    """
    if name == BYTES:
        return ByteTokenizer()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return FastTokenizer(name, folder / "tokenizer.json")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return FastTokenizer(name, Path(hf_hub_download(name, "tokenizer.json")))
    except LocalEntryNotFoundError as error:
        raise HubUnavailable(
            f"the tokenizer {name!r} cannot be fetched because the hub cannot be reached; check the network "
            f"(HF_ENDPOINT, HF_HUB_OFFLINE) or train offline with data.tokenizer: {BYTES!r}"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise DataError(
            f"the hub has no tokenizer {name!r} that you may read; set HF_TOKEN if it is gated"
        ) from error
