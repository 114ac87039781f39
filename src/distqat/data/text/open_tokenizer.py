"""From `data.tokenizer` to its tokenizer: bytes, a BPE trained here, a folder, or a model of the hub."""

from __future__ import annotations

import json
from pathlib import Path

from distqat.config_paths import find, looked_at
from distqat.data.text.bpe import size_of, trained
from distqat.data.text.tokenizer import BYTES, CONFIG, ByteTokenizer, EngineTokenizer, Tokenizer
from distqat.errors import DataError, HubUnavailable

FILE = "tokenizer.json"
MAP = "special_tokens_map.json"


def open_tokenizer(name: str, end: str | None = None) -> Tokenizer:
    """`bytes`, `bpe:N`, a folder with a tokenizer.json, or a model on the hub.

    `end` names the token that ends a document, where it is not the tokenizer's own.
    Raises HubUnavailable where a hub name is out of reach, DataError where the tokenizer does not exist.
    """
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
            f"the tokenizer {name!r} is not a folder ({looked_at(name)}), and it cannot be "
            "fetched because the hub cannot be reached; check the network (HF_ENDPOINT, HF_HUB_OFFLINE) or "
            f"train offline with data.tokenizer: {BYTES!r} or 'bpe:2000'"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise DataError(
            f"the tokenizer {name!r} is neither a folder ({looked_at(name)}) nor one of the "
            "hub that you may read; set HF_TOKEN if it is gated"
        ) from error
