"""Tokenizers inside GGUF files: read back, they cut texts into the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distqat.data.text.open_tokenizer import open_tokenizer
from distqat.export.gguf_tokenizer import split_of, write_tokenizer

TEXT = "def f(x):\n    return 'é' + \"日本\"  # it's 12345\n"
BYTES_BEHIND = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


class Writer:
    """Remembers what a GGUFWriter is given."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda value: self.given.update({name.removeprefix("add_"): value})


def definition(*before: dict[str, Any], **changes: Any) -> dict[str, Any]:
    parts = {"type": "Sequence", "pretokenizers": list(before)}
    return {"model": {"type": "BPE"}, "pre_tokenizer": parts, "normalizer": None, **changes}


@pytest.mark.parametrize("name", ["bytes", "bpe:300"])
def test_tokens_and_merges_are_those_of_the_tokenizer(name: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer: Any = open_tokenizer(name)
    writer = Writer()
    assert write_tokenizer(writer, name, None, tokenizer.size + 3) is None
    given = writer.given
    assert (given["tokenizer_model"], given["tokenizer_pre"], given["add_bos_token"]) == (
        "gpt2",
        "gpt-2",
        False,
    )
    assert given["eos_token_id"] == tokenizer.end
    assert len(given["token_list"]) == len(given["token_types"]) == tokenizer.size + 3
    assert given["token_types"][-3:] == [5, 5, 5]  # unused: the model has more rows than there are tokens
    vocabulary = {token: number for number, token in enumerate(given["token_list"])}
    merges = [tuple(merge.split(" ")) for merge in given["token_merges"]]
    known = [merge for merge in merges if "".join(merge) in vocabulary]
    engine: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=known))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert engine.encode(TEXT).ids == tokenizer.encode(TEXT)


def test_splits_of_known_tokenizers_have_llama_cpps_names() -> None:
    behind = {"type": "Split", "pattern": {"Regex": QWEN}}
    assert split_of(definition(behind, BYTES_BEHIND)) == "qwen2"
    assert split_of(definition(behind, BYTES_BEHIND, normalizer={"type": "NFC"})) == "qwen2"
    assert split_of(definition({**BYTES_BEHIND, "use_regex": True})) == "gpt-2"


@pytest.mark.parametrize(
    "other",
    [
        definition({"type": "Split", "pattern": {"Regex": r"\w+"}}, BYTES_BEHIND),
        definition(BYTES_BEHIND),
        definition({"type": "Metaspace"}),
        definition({**BYTES_BEHIND, "use_regex": True}, model={"type": "Unigram"}),
        definition({**BYTES_BEHIND, "use_regex": True}, normalizer={"type": "Lowercase"}),
    ],
)
def test_other_tokenizers_are_not_known(other: dict[str, Any]) -> None:
    assert split_of(other) is None


def test_a_tokenizer_that_llama_cpp_lacks_is_left_out_and_a_chat_template_kept(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    engine: Any = Tokenizer(models.BPE(vocab={"a": 0, "</s>": 1}, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    writer = Writer()
    left_out = write_tokenizer(writer, str(tmp_path), None, 2)
    assert left_out is not None
    assert "is left out" in left_out
    assert writer.given == {"tokenizer_model": "none", "chat_template": "{{ messages }}"}
