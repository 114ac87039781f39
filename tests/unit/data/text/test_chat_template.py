"""Chat templates beside a tokenizer's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distqat.data.text.chat_template import chat_template

NAMED = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]


@pytest.mark.parametrize(
    ("told", "found"),
    [({"chat_template": "C"}, "C"), ({"chat_template": NAMED}, "D"), ({}, None), ([], None)],
)
def test_it_is_in_the_tokenizers_configuration(told: Any, found: str | None, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    assert chat_template(str(tmp_path)) == found


def test_a_file_of_its_own_comes_first(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "C"}))
    (tmp_path / "chat_template.jinja").write_text("{{ own }}")
    assert chat_template(str(tmp_path)) == "{{ own }}"


@pytest.mark.parametrize("name", ["bytes", "bpe:1000"])
def test_tokenizers_that_are_made_here_have_none(name: str) -> None:
    assert chat_template(name) is None
