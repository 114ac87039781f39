"""The tokenizer of a run as the files that transformers reads beside a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from distqat.data.text.bpe import END, size_of, trained
from distqat.data.text.open_tokenizer import FILE
from distqat.data.text.tokenizer import BYTES, CONFIG, ByteTokenizer, EngineTokenizer
from distqat.models.hub_files import fetch

FILES = (
    FILE, CONFIG, "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "chat_template.jinja",
)  # fmt: skip


def write_tokenizer(name: str, folder: Path) -> list[str]:
    """Write the tokenizer `data.tokenizer` names into `folder`; returns the names of the files.

    Of a folder or a hub repository its own files are copied, with the chat template. Raises HubUnavailable,
    DataError and ModelError where they cannot be had.
    """
    size = size_of(name)
    if name == BYTES or size is not None:
        made = EngineTokenizer(name, byte_engine()) if size is None else trained(size)
        made.save(folder / FILE)
        told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END}
        (folder / CONFIG).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        return [FILE, CONFIG]
    found = {file: path for file in FILES if (path := fetch(name, file)) is not None}
    for file, path in found.items():
        shutil.copyfile(path, folder / file)
    return list(found)


def byte_engine() -> Any:
    """`ByteTokenizer` as a tokenizer of the tokenizers library: a byte-level BPE without merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = _letters()
    vocabulary = {letter: byte for byte, letter in enumerate(letters)} | {END: ByteTokenizer.end}
    engine: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(END, special=True)])
    return engine


def _letters() -> list[str]:
    """The letter that byte-level BPE writes for each byte: itself if it can be seen, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in seen else chr(next(others)) for byte in range(256)]
