"""A tokenizer that does not belong to the model is found before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import check_model
from distqat.distributed.assembly.vocabulary_check import check_tokenizer, vocabulary
from distqat.errors import ModelError

TINY = {"n_layer": 3, "n_embd": 16, "n_head": 2, "n_positions": 16}


def config(tokenizer: str, entry: dict[str, Any]) -> Config:
    names = ("head", "body", "tail")
    return Config.model_validate(
        {
            "data": {
                "dataset_name": "python_docs",
                "task_type": "llm",
                "sequence_length": 8,
                "tokenizer": tokenizer,
            },
            "model_pipeline": {"pipeline": [{"model_name": f"distilgpt2.{n}", **entry} for n in names]},
            "quant": {"enabled": False},
        }
    )


def test_tokens_that_the_model_does_not_know() -> None:
    check_model(config("bytes", {**TINY, "vocab_size": 257}))
    with pytest.raises(ModelError, match="has 2000 tokens, but the model knows 257; set vocab_size to 2000"):
        check_model(config("bpe:2000", {**TINY, "vocab_size": 257}))
    check_tokenizer(config("bytes", TINY))  # 50257 tokens to learn, of which the data has some


def test_a_pretrained_model_has_learnt_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **TINY, "vocab_size": 400}))
    run = config("bytes", {"pretrained": str(tmp_path)})
    assert vocabulary(run) == 400
    with pytest.raises(ModelError, match=r"another tokenizer; use its own, data\.tokenizer: "):
        check_tokenizer(run)
    check_tokenizer(config("bpe:400", {"pretrained": str(tmp_path)}))


def test_a_hub_out_of_reach_says_nothing_of_the_vocabulary() -> None:
    run = config("acme/none", {"pretrained": "acme/none"})
    check_tokenizer(run)
