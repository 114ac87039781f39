"""Tokenizers of files: what they store about cutting and filling up does not touch a corpus; how they end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from distqat.data.open_source import open_source
from distqat.data.options import DataOptions
from distqat.data.text.open_tokenizer import known_size, open_tokenizer
from distqat.data.text.packing import Packing
from distqat.errors import DataError

WORDS = [f"word{i % 50} fox dog {i}" for i in range(400)]
LONG, SHORT = "word1 " * 300, "hi"


def made(folder: Path, end: str = "<|endoftext|>", **beside: Any) -> Any:
    """A byte-level BPE in `folder`, and files beside it by name."""
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [end, "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator(WORDS, trainer)
    save(engine, folder)
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return engine


def save(engine: Any, folder: Path) -> None:
    engine.save(str(folder / "tokenizer.json"))


def sequences(folder: Path, text: str, **options: Any) -> list[list[int]]:
    rows = Packing(open_tokenizer(str(folder)), 32)([{"text": text}] * 40)
    return [row["tokens"].tolist() for row in rows]


@pytest.mark.parametrize("stored", ["truncation", "padding", "both", "dropout"])
@pytest.mark.parametrize("text", [LONG, SHORT])
def test_what_a_file_stores_about_batches_changes_no_corpus(stored: str, text: str, tmp_path: Path) -> None:
    engine = made(tmp_path)
    plain = sequences(tmp_path, text)
    if stored in ("truncation", "both"):
        engine.enable_truncation(max_length=16)
    if stored in ("padding", "both"):
        engine.enable_padding(length=64, pad_id=engine.token_to_id("<pad>"), pad_token="<pad>")
    if stored == "dropout":
        engine.model.dropout = 0.5
    save(engine, tmp_path)
    assert sequences(tmp_path, text) == plain
    assert open_tokenizer(str(tmp_path)).encode(text) == engine_without(engine).encode(text).ids


def engine_without(engine: Any) -> Any:
    engine.no_truncation()
    engine.no_padding()
    engine.model.dropout = None
    return engine


@pytest.mark.parametrize(
    "beside",
    [
        {"tokenizer_config": {"eos_token": "[EOS]"}},
        {"tokenizer_config": {"eos_token": {"content": "[EOS]", "lstrip": False}}},
        {"special_tokens_map": {"eos_token": "[EOS]"}},
        {"tokenizer_config": {"pad_token": "x"}, "special_tokens_map": {"eos_token": "[EOS]"}},
    ],
)
def test_an_end_of_another_name_is_found_in_the_files_beside(beside: Any, tmp_path: Path) -> None:
    engine = made(tmp_path, "[EOS]", **beside)
    assert open_tokenizer(str(tmp_path)).end == engine.token_to_id("[EOS]")


def test_what_the_tokenizer_says_goes_before_usual_names(tmp_path: Path) -> None:
    engine = made(tmp_path, "<eos>", tokenizer_config={"eos_token": "<pad>"})
    assert open_tokenizer(str(tmp_path)).end == engine.token_to_id("<pad>")
    assert open_tokenizer(str(tmp_path), "<eos>").end == engine.token_to_id("<eos>")


def test_an_end_that_nothing_names_is_named_by_a_key(tmp_path: Path) -> None:
    made(tmp_path, "[FIN]", tokenizer_config={"eos_token": None})
    (tmp_path / "special_tokens_map.json").write_text("no json")
    assert known_size(str(tmp_path)) == 290  # servers need no end
    with pytest.raises(DataError, match=r"names none.*; name it in data\.options\.end_token"):
        Packing(open_tokenizer(str(tmp_path)), 8)
    with pytest.raises(DataError, match=r"end_token: .* has no token '\[FINE\]'; did you mean '\[FIN\]'"):
        Packing(open_tokenizer(str(tmp_path), "[FINE]"), 8)
    with pytest.raises(DataError, match="ends documents by itself"):
        open_tokenizer("bytes", "[FIN]")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(WORDS))
    given = {"task_type": "llm", "tokenizer": str(tmp_path), "sequence_length": 16}
    options = DataOptions.model_validate(
        {**given, "dataset_name": str(corpus), "options": {"end_token": "[FIN]"}, "shuffle_buffer": 1}
    )
    source = open_source(options, seed=0)
    assert "end_token='[FIN]'" in source.order
    tokens = [t for item in source.take(1) for t in item.sample["tokens"].tolist()]
    assert open_tokenizer(str(tmp_path), "[FIN]").end in tokens


def test_half_a_surrogate_pair_of_json_is_no_reason_to_stop(tmp_path: Path) -> None:
    made(tmp_path)
    assert open_tokenizer(str(tmp_path)).encode("a\ud800b") == open_tokenizer(str(tmp_path)).encode("a?b")


def test_ids_with_gaps_lie_below_the_size(tmp_path: Path) -> None:
    made(tmp_path)
    path = tmp_path / "tokenizer.json"
    told = json.loads(path.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    told["added_tokens"].append({"id": 400, "content": "<far>", **flags})
    path.write_text(json.dumps(told))
    tokenizer = open_tokenizer(str(tmp_path))
    assert max(tokenizer.encode("<far>")) < tokenizer.size
