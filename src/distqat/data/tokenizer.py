"""Text to token ids: bytes, a BPE trained here, or a tokenizer of the hub or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from distqat.errors import DataError, HubUnavailable
from distqat.places import find, looked_at

BYTES = "bytes"
FILE = "tokenizer.json"
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


class EngineTokenizer:
    """A tokenizer of the tokenizers library."""

    def __init__(self, name: str, engine: Any) -> None:
        self.name = name
        self._engine = engine
        self.size = int(engine.get_vocab_size())
        end = next((i for i in map(engine.token_to_id, END_NAMES) if i is not None), None)
        if end is None:
            raise DataError(
                f"the tokenizer {name!r} has no token that ends a document: {', '.join(END_NAMES)}"
            )
        self.end = int(end)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text again; marks are left out."""
        return str(self._engine.decode(ids))


def open_tokenizer(name: str) -> Tokenizer:
    """`bytes`, `bpe:N`, a folder with a tokenizer.json, or a model on the hub.

    Raises HubUnavailable where a hub name is out of reach, DataError where there is no such tokenizer.
    """
    from distqat.data.bpe import size_of, trained

    if name == BYTES:
        return ByteTokenizer()
    size = size_of(name)
    if size is not None:
        return trained(size)
    folder = find(name)
    if folder.is_dir():
        return _from_file(name, folder / FILE)
    return _from_file(name, _download(name))


def known_size(name: str) -> int | None:
    """How many tokens there are, as far as that can be told without the network. Raises DataError."""
    from distqat.data.bpe import size_of

    if name == BYTES:
        return ByteTokenizer.size
    size = size_of(name)
    if size is not None:
        return size
    folder = find(name)
    if folder.is_dir():
        return _from_file(name, folder / FILE).size
    if "/" not in name:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, FILE)
    return _from_file(name, Path(cached)).size if isinstance(cached, str) else None


def _from_file(name: str, path: Path) -> EngineTokenizer:
    from tokenizers import Tokenizer as Engine

    try:
        engine = Engine.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower for a file that it cannot read
        raise DataError(f"the tokenizer {name!r} cannot be read from {path}: {error}") from error
    return EngineTokenizer(name, engine)


def _download(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, FILE))
    except LocalEntryNotFoundError as error:
        raise HubUnavailable(
            f"the tokenizer {name!r} is no folder ({looked_at(name)}), and it cannot be "
            "fetched because the hub cannot be reached; check the network (HF_ENDPOINT, HF_HUB_OFFLINE) or "
            f"train offline with data.tokenizer: {BYTES!r} or 'bpe:2000'"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise DataError(
            f"the tokenizer {name!r} is neither a folder ({looked_at(name)}) nor one of the "
            "hub that you may read; set HF_TOKEN if it is gated"
        ) from error
