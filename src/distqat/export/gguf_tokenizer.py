"""The tokenizer of a model as llama.cpp reads it: tokens, merges and marks inside the GGUF file.

llama.cpp knows byte-level BPE as "gpt2": tokens spelled in GPT-2's alphabet of 256 printable characters, and
merges in order. The tokenizer `bytes` is that without any merge. How text is split before merging is one of
llama.cpp's own rules, chosen by name; a tokenizer that splits otherwise is left out of the file, which then
takes token ids only, as llama.cpp would cut its texts in other places.
"""

from __future__ import annotations

from typing import Any

from distqat.data.text.bpe import END
from distqat.data.text.chat_template import chat_template
from distqat.data.text.open_tokenizer import open_tokenizer
from distqat.data.text.tokenizer import EngineTokenizer
from distqat.export.tokenizer_files import byte_engine

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf.TokenType
NO_MERGE = f"{END} {END}"
"""llama.cpp demands a list of merges, and an empty one cannot be written: this one never applies."""
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    _WORDS + r"\p{N}" + _REST: "qwen2",
    _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
}
"""Regular expressions in front of the bytes, and llama.cpp's names for them."""


def write_tokenizer(writer: Any, name: str, end: str | None, size: int) -> str | None:
    """Write the tokenizer `name` for a model of `size` tokens; say what is left out, and why.

    `end` names the token that ends a document, where it is not the tokenizer's own. Raises as
    `open_tokenizer` does.
    """
    tokenizer = open_tokenizer(name, end)
    template = chat_template(name)
    if template is not None:
        writer.add_chat_template(template)
    if isinstance(tokenizer, EngineTokenizer):
        definition = tokenizer.definition()
        split = split_of(definition)
    else:
        definition = EngineTokenizer(name, byte_engine()).definition()
        split = "gpt-2"  # there are no merges, so it makes no difference
    if split is None:
        writer.add_tokenizer_model("none")
        return f"the tokenizer {name!r} is left out: llama.cpp has no byte-level BPE that splits as it does"
    tokens, kinds = _tokens(definition)
    for number in range(len(tokens), size):
        tokens.append(f"[PAD{number}]")
        kinds.append(UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(_merges(definition))
    writer.add_bos_token_id(tokenizer.end)
    writer.add_eos_token_id(tokenizer.end)
    writer.add_add_bos_token(False)  # as in training, where texts are encoded without marks
    return None


def split_of(definition: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a tokenizer.json splits text; None for one that it does not have."""
    model, before = definition["model"], definition.get("pre_tokenizer") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback") or definition.get("normalizer") not in _PLAIN:
        return None
    parts = before.get("pretokenizers", [before])
    if not parts or parts[-1].get("type") != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    if len(parts) == 1:
        return "gpt-2" if parts[0].get("use_regex", True) else None
    pattern = parts[0].get("pattern", {}).get("Regex", "") if len(parts) == 2 else ""
    return None if parts[-1].get("use_regex", True) else _SPLITS.get(pattern)


_PLAIN = (None, {"type": "NFC"})
"""Normalizers that change no text, or (Qwen's) hardly any; llama.cpp has none."""


def _tokens(definition: dict[str, Any]) -> tuple[list[str], list[int]]:
    """In the order of their ids; numbers may have gaps."""
    vocabulary: dict[str, int] = definition["model"]["vocab"]
    spelled = {number: (token, NORMAL) for token, number in vocabulary.items()}
    for added in definition.get("added_tokens", []):
        spelled[added["id"]] = (added["content"], CONTROL if added["special"] else USER_DEFINED)
    both = [spelled.get(number, (f"[PAD{number}]", UNUSED)) for number in range(max(spelled) + 1)]
    return [token for token, _ in both], [kind for _, kind in both]


def _merges(definition: dict[str, Any]) -> list[str]:
    """`left right`; older files have it so, newer ones in pairs."""
    merges = definition["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges] or [NO_MERGE]
