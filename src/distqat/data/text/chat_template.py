"""The chat template that lies beside a tokenizer: how turns of a conversation become one text (Jinja)."""

from __future__ import annotations

import json
from pathlib import Path

from distqat.data.text.bpe import size_of
from distqat.data.text.tokenizer import BYTES, CONFIG
from distqat.errors import HubUnavailable
from distqat.models.hub_files import fetch

FILE = "chat_template.jinja"


def chat_template(name: str) -> str | None:
    """That of the tokenizer `name`, a folder or a model of the hub; None where none can be had.

    It is in a file of its own, or in tokenizer_config.json, of several under the name `default`.
    """
    if name == BYTES or size_of(name) is not None:
        return None
    own = _beside(name, FILE)
    config = _beside(name, CONFIG) if own is None else None
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
    try:
        return fetch(name, file)
    except HubUnavailable:  # the tokenizer itself may lie in the cache
        return None
