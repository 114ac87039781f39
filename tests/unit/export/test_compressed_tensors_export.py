"""Folders of compressed-tensors: what a layer is said to be, how codes are packed, what is refused."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.export.quantized import quantized, request_for, tiny_config
from torch import nn

from distqat.errors import ExportError, MissingExtra
from distqat.export.compressed_scheme import LayerScheme, packed, quantization_config
from distqat.export.export_request import export_as
from distqat.export.tokenizer_files import write_tokenizer
from distqat.quant.quantized_layers import to_quantized
from distqat.quant.token_quantizer import TokenQuantizer
from distqat.quant.weight_quantizer import WeightQuantizer

INSTALLED = pytest.mark.skipif(
    find_spec("compressed_tensors") is None, reason="the extra compressed-tensors is not installed"
)
LLAMA = {
    "model_type": "llama", "vocab_size": 257, "hidden_size": 64, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}  # fmt: skip
STAGES = [
    {"model_name": f"hf.{part}", "layers": layers, "config": LLAMA}
    for part, layers in (("head", [0, 1]), ("tail", [1, 2]))
]
HOW: dict[str, dict[str, Any]] = {
    "W4A16 per group": {
        "quant.weight.bits": 4, "quant.weight.granularity": "per_group", "quant.activation.method": "none",
        "quant.first_last_bits": 4,
    },
    "W3A16, first layer W8A16": {"quant.weight.bits": 3, "quant.activation.method": "none"},
    "W8A8": {"quant.skip": ["*embed_tokens*", "*lm_head*"]},
    "W8A16, tied": {
        "quant.activation.method": "none",
        "model_pipeline.pipeline": [
            {"model_name": "hf.full", "config": {**LLAMA, "tie_word_embeddings": True}}
        ],
    },
    "W4A8 per token": {"quant.weight.bits": 4, "quant.activation.granularity": "per_token"},
}  # fmt: skip


def llama(how: str) -> Any:
    return tiny_config("distilgpt2", **{"model_pipeline.pipeline": STAGES, **HOW[how]})


@pytest.mark.parametrize(("bits", "inputs"), [(4, 16), (4, 13), (8, 8), (8, 5)])
def test_packed_codes_come_back_word_by_word(bits: int, inputs: int) -> None:
    lowest = -(2 ** (bits - 1))
    codes = torch.randint(lowest, -lowest, (3, inputs), dtype=torch.int8)
    words = packed(codes, bits)
    each = 32 // bits
    assert words.dtype == torch.int32
    assert words.shape == (3, -(-inputs // each))
    for column in range(inputs):
        found = (words[:, column // each].long() >> (column % each * bits)) & (2**bits - 1)
        assert torch.equal(found + lowest, codes[:, column].long())


def test_the_usual_scheme_is_for_linear_layers_and_others_are_named() -> None:
    four, eight = LayerScheme(4, 32, "token"), LayerScheme(8, None, "tensor", symmetric=False)
    told = quantization_config({"a": eight, "b": four, "c": four}, ["a", "b", "c", "lm_head"])
    first, second = told["config_groups"].values()
    assert first["targets"] == ["a"]
    assert (first["input_activations"]["symmetric"], first["input_activations"]["dynamic"]) == (False, False)
    assert second["targets"] == ["Linear"]
    assert (second["weights"]["strategy"], second["weights"]["group_size"]) == ("group", 32)
    assert (second["input_activations"]["strategy"], second["input_activations"]["dynamic"]) == (
        "token",
        True,
    )
    assert told["ignore"] == ["lm_head"]
    assert told["format"] == "int-quantized"


@pytest.mark.parametrize(
    ("layer", "bits", "said"),
    [
        (nn.Conv2d(4, 4, 1), 8, r"block\.fc is no torch\.nn\.Linear"),
        (nn.Linear(4, 4), 4, r"block\.fc takes activations of 4 bits"),
    ],
)
def test_a_layer_that_it_cannot_hold_is_refused(layer: nn.Module, bits: int, said: str) -> None:
    weights = WeightQuantizer("fc", layer.weight.detach(), bits=8, axis=0)
    weights.begin(weights.initial_step(layer.weight))
    to_quantized(layer, weights, TokenQuantizer(bits))
    with pytest.raises(ExportError, match=said):
        LayerScheme.of("block.fc", layer)


def test_another_kind_of_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distqat.export.compressed_tensors_export.require", lambda *_, **__: None)
    config = tiny_config("mlp")
    model, _, samples = quantized(config)
    with pytest.raises(ExportError, match="takes causal language models"):
        export_as("compressed-tensors", request_for(model, config, samples, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_model_that_never_fits_is_refused_before_the_package_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    config = tiny_config("mlp")
    model, _, samples = quantized(config)
    with pytest.raises(ExportError, match="takes causal language models"):
        export_as("compressed-tensors", request_for(model, config, samples, tmp_path))


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)  # as if it were not installed
    config = llama("W4A16 per group")
    model, _, samples = quantized(config)
    with pytest.raises(MissingExtra, match="compressed-tensors"):
        export_as("compressed-tensors", request_for(model, config, samples, tmp_path))


@pytest.mark.parametrize("name", ["bytes", "bpe:300"])
def test_the_tokenizer_beside_the_model_gives_the_ids_of_training(name: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    from distqat.data.text.open_tokenizer import open_tokenizer

    assert write_tokenizer(name, tmp_path) == ["tokenizer.json", "tokenizer_config.json"]
    found, trained = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), open_tokenizer(name)
    for text in ("def f(x):\n\treturn x", "naïve – 你好 \U0001f600\x00"):
        assert found.encode(text).ids == trained.encode(text)
        assert found.decode(found.encode(text).ids) == text
    assert found.token_to_id("<|endoftext|>") == trained.end


@INSTALLED
@pytest.mark.parametrize("how", HOW)
def test_transformers_loads_the_trained_weights(how: str, tmp_path: Path) -> None:
    config = llama(how)
    model, _, samples = quantized(config)
    report = export_as("compressed-tensors", request_for(model, config, samples[:16], tmp_path))
    exact = "A16" in how
    assert report.largest_error == 0 if exact else report.agreement > 0.9
    assert not any("read back" in failure for failure in report.failures)
    assert all("100.000% agree" in failure for failure in report.failures)
    told = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert told["format"] == ("pack-quantized" if exact else "int-quantized")


@INSTALLED
def test_another_weight_in_the_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = llama("W4A16 per group")
    model, _, samples = quantized(config)
    monkeypatch.setattr(
        "distqat.export.compressed_scheme.packed", lambda codes, bits: packed(codes.roll(1, 0), bits)
    )
    report = export_as("compressed-tensors", request_for(model, config, samples[:16], tmp_path))
    assert any("layers.0.self_attn.q_proj" in failure for failure in report.failures)
