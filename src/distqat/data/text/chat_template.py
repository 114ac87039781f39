"""The chat template that lies beside a tokenizer: how turns of a conversation become one text (Jinja)."""

from __future__ import annotations

import json
from pathlib import Path

from distqat.config_paths import find
from distqat.data.text.tokenizer import CONFIG

FILE = "chat_template.jinja"


def chat_template(name: str) -> str | None:
    """That of the tokenizer `name`, a folder or a model of the hub that is on this machine; else None.

    It is in a file of its own, or in tokenizer_config.json, of several under the name `default`.
    """
    own, config = _beside(name, FILE), _beside(name, CONFIG)
    try:
        if own is not None:
            return own.read_text("utf-8")
        told = json.loads(config.read_text("utf-8")).get("chat_template") if config is not None else None
    except (OSError, ValueError, AttributeError):
        return None
    if isinstance(told, list):
        named = {each.get("name"): each.get("template") for each in told if isinstance(each, dict)}
        told = named.get("default")
    return told if isinstance(told, str) else None


def _beside(name: str, file: str) -> Path | None:
    folder = find(name)
    if folder.is_dir():
        path = folder / file
        return path if path.is_file() else None
    if "/" not in name:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, file)
    return Path(cached) if isinstance(cached, str) else None
