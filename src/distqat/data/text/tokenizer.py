"""Text to token ids: bytes, a BPE trained here, or a tokenizer of the hub or a folder."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Protocol

from distqat.config_paths import find, looked_at
from distqat.errors import DataError, HubUnavailable

BYTES = "bytes"
FILE = "tokenizer.json"
CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
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
        """Ids of a text, all of them; half a surrogate pair, which is no character, becomes `?`."""
        whole = text.encode("utf-8", errors="replace").decode("utf-8")
        ids: list[int] = self._engine.encode(whole, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text again; marks are left out."""
        return str(self._engine.decode(ids))


def open_tokenizer(name: str, end: str | None = None) -> Tokenizer:
    """`bytes`, `bpe:N`, a folder with a tokenizer.json, or a model on the hub.

    `end` names the token that ends a document, where it is not the tokenizer's own.
    Raises HubUnavailable where a hub name is out of reach, DataError where there is no such tokenizer.
    """
    from distqat.data.text.bpe import size_of, trained

    size = size_of(name)
    if end is not None and (name == BYTES or size is not None):
        raise DataError(
            f"data.options.end_token: the tokenizer {name!r} ends documents by itself; leave it out"
        )
    if name == BYTES:
        return ByteTokenizer()
    if size is not None:
        return trained(size)
    folder = find(name)
    if folder.is_dir():
        return _from_file(name, folder / FILE, _own_end(folder / CONFIG) or _own_end(folder / MAP), end)
    path = _download(name)
    return _from_file(name, path, _own_end(_beside(name)), end)


def known_size(name: str) -> int | None:
    """How many tokens there are, as far as that can be told without the network. Raises DataError."""
    from distqat.data.text.bpe import size_of

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


def _from_file(name: str, path: Path, own_end: str | None = None, end: str | None = None) -> EngineTokenizer:
    from tokenizers import Tokenizer as Engine

    try:
        engine = Engine.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower for a file that it cannot read
        raise DataError(f"the tokenizer {name!r} cannot be read from {path}: {error}") from error
    return EngineTokenizer(name, engine, own_end, end)


def _own_end(path: Path | None) -> str | None:
    """`eos_token` of a file beside the tokenizer's, where there is one."""
    try:
        told = json.loads(path.read_text("utf-8")).get("eos_token") if path is not None else None
    except (OSError, ValueError, AttributeError):
        return None
    if isinstance(told, dict):  # as older files have it, with how it is stripped
        told = told.get("content")
    return told if isinstance(told, str) else None


def _beside(name: str) -> Path | None:
    """The tokenizer_config.json of the hub; None where there is none, or it is out of reach."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, CONFIG))
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError):
        return None


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
