"""GGUF files: the trained codes in llama.cpp's blocks, under its names, with its order of rows."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.unit.export.quantized import GPT, LLAMA, quantized, request_for, tiny_config
from torch import nn

from distqat.errors import ExportError, MissingExtra
from distqat.export import gguf_export, llama_cpp
from distqat.export.checker import Expectations
from distqat.export.export_request import ExportRequest, export_as
from distqat.export.gguf_blocks import BLOCK, FLOAT16_ERROR, block_type, packed
from distqat.export.gguf_families import FAMILIES, family_of
from distqat.export.gguf_tensors import config_of, gguf_tensors
from distqat.export.joined_stages import JoinedStages

NEEDS_GGUF = pytest.mark.skipif(find_spec("gguf") is None, reason="the extra gguf is not installed")
LLAMA_CPP = os.environ.get(llama_cpp.VARIABLE)
GROUPS = {"quant.weight.granularity": "per_group", "quant.weight.group": 32}
GPT_OF_32 = {**GPT, "n_embd": 32}


@pytest.fixture(autouse=True)
def _no_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(llama_cpp.VARIABLE, raising=False)


def request_of(folder: Path, name: str = "hf_tiny", **changes: Any) -> ExportRequest:
    config = tiny_config(name, **changes)
    model, _, samples = quantized(config)
    return request_for(model, config, samples[:8], folder)


def tensors_of(folder: Path) -> dict[str, Any]:
    import gguf

    return {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "model.gguf").tensors}


def floats(tensor: Any) -> torch.Tensor:
    import gguf

    return torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))


@NEEDS_GGUF
@pytest.mark.parametrize(("bits", "kind"), [(8, "Q8_0"), (5, "Q8_0"), (4, "Q4_0"), (2, "Q4_0")])
def test_blocks_decode_to_the_codes_times_the_step(bits: int, kind: Any) -> None:
    import gguf

    rng, largest = np.random.default_rng(0), 2 ** (bits - 1) - 1
    codes = rng.integers(-largest, largest + 1, (3, 2 * BLOCK)).astype(np.int8)
    steps = rng.uniform(1e-3, 1e-1, (3, 2)).astype(np.float16)
    assert block_type(bits) == kind
    decoded = gguf.quants.dequantize(packed(codes, steps, kind), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(decoded, codes * np.repeat(steps.astype(np.float32), BLOCK, axis=1))


@NEEDS_GGUF
def test_a_llama_in_two_stages_of_four_bits_with_a_step_per_group(tmp_path: Path) -> None:
    pipeline = [
        {"model_name": f"hf.{stage}", "layers": layers, "config": {**LLAMA, "num_hidden_layers": 2}}
        for stage, layers in (("head", [0, 1]), ("tail", [1, 2]))
    ]
    bits = {"quant.weight.bits": 4, "quant.first_last_bits": 8}
    request = request_of(tmp_path, **GROUPS, **bits, **{"model_pipeline.pipeline": pipeline})
    report = export_as("gguf", request)
    assert report.failures == ()
    assert report.agreement >= 0.99
    assert report.sizes.weights_ratio < 0.3
    tensors = tensors_of(tmp_path)
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert (kinds["blk.0.attn_q.weight"], kinds["blk.0.ffn_up.weight"]) == ("Q8_0", "Q4_0")  # the first: 8
    assert [kinds[f"{name}.weight"] for name in ("token_embd", "output", "output_norm")] == [
        "Q8_0",
        "Q8_0",
        "F32",
    ]
    assert kinds["blk.0.ffn_down.weight"] == "F16"  # its rows are of 48
    assert any("ffn_down.weight is float16" in note for note in report.notes())
    layer: Any = request.model.get_submodule("tail.model.layers.1.self_attn.k_proj")
    value_HTI = layer.weight_quant(layer.weight).detach().view(2, 2, -1, 32)
    expected = value_HTI.transpose(1, 2).reshape(-1, 32)  # pairs of a head side by side, as llama.cpp rotates
    assert torch.allclose(floats(tensors["blk.1.attn_k.weight"]), expected, rtol=FLOAT16_ERROR, atol=0)


@NEEDS_GGUF
def test_a_gpt2_with_a_quantized_head_over_its_embedding(tmp_path: Path) -> None:
    skip = ["*.wte", "*.wpe"]  # the embedding stays in float, and is another tensor in the file
    pipeline = [{"model_name": "distilgpt2.full", **GPT_OF_32}]
    request = request_of(tmp_path, "distilgpt2", **{"quant.skip": skip, "model_pipeline.pipeline": pipeline})
    report = export_as("gguf", request)
    assert report.failures == ()
    tensors = tensors_of(tmp_path)
    assert tensors["output.weight"].tensor_type.name == "Q8_0"
    assert tensors["token_embd.weight"].tensor_type.name == "F16"
    layer: Any = request.model.get_submodule("full.transformer.h.0.attn.c_attn")
    found = floats(tensors["blk.0.attn_qkv.weight"])
    expected = layer.weight_quant(layer.weight).detach().t()
    assert torch.allclose(found, expected, rtol=FLOAT16_ERROR, atol=0)
    assert torch.equal(floats(tensors["blk.0.attn_qkv.bias"]), layer.used_bias().detach())
    assert "those of the model with quantized weights" in report.to_markdown()
    assert json.loads((tmp_path / "report.json").read_text())["format"] == "gguf"


@NEEDS_GGUF
@pytest.mark.slow
@pytest.mark.skipif(LLAMA_CPP is None, reason=f"{llama_cpp.VARIABLE} does not say where llama.cpp is")
@pytest.mark.parametrize("name", ["hf_tiny", "distilgpt2"])
def test_llama_cpp_gives_the_same_tokens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(llama_cpp.VARIABLE, str(LLAMA_CPP))
    changes = {"model_pipeline.pipeline": [{"model_name": "distilgpt2.full", **GPT_OF_32}]}
    request = request_of(tmp_path, name, **changes if name == "distilgpt2" else {})
    report = export_as("gguf", replace(request, expected=Expectations(agreement=0.9)))
    assert report.failures == ()  # among them: texts that are cut into other tokens
    assert any(remark.startswith("llama.cpp v") for remark in report.remarks)


@NEEDS_GGUF
def test_a_head_that_is_the_embedding_is_left_out(tmp_path: Path) -> None:
    import gguf

    pipeline = [{"model_name": "distilgpt2.full", **GPT_OF_32}]
    model, _, _ = quantized(tiny_config("distilgpt2", **{"model_pipeline.pipeline": pipeline}))
    made = gguf_tensors(model, gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 1))
    stored = {each.name: (each.kind, each.places) for each in made}
    assert stored["token_embd.weight"] == ("Q8_0", ("full.transformer.wte.weight", "full.lm_head.weight"))
    assert "output.weight" not in stored


def test_other_models_are_refused() -> None:
    from transformers import GPTNeoConfig

    with pytest.raises(ExportError, match="gguf takes causal language models"):
        config_of(JoinedStages({"full": nn.Linear(2, 2)}))
    with pytest.raises(ExportError, match=r"gguf takes gpt2, gpt_neox, llama, .* and this is gpt_neo:"):
        family_of(GPTNeoConfig())


def test_what_llama_cpp_would_compute_otherwise_is_refused() -> None:
    from transformers import GPT2Config, LlamaConfig

    with pytest.raises(ExportError, match="activation_function: 'gelu_new', and this one has 'relu'"):
        family_of(GPT2Config(activation_function="relu"))
    with pytest.raises(ExportError, match="rope_type 'linear'"):
        family_of(LlamaConfig(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}))


def test_gpt_neox_has_queries_keys_and_values_apart() -> None:
    from transformers import GPTNeoXConfig

    config = GPTNeoXConfig(hidden_size=8, num_attention_heads=2)
    order = FAMILIES["gpt_neox"].row_order("layers.0.attention.query_key_value.weight", config, 24)
    assert order is not None
    assert order.tolist() == [
        *range(4),
        *range(12, 16),
        *range(4, 8),
        *range(16, 20),
        *range(8, 12),
        *range(20, 24),
    ]
    assert FAMILIES["gpt_neox"].row_order("layers.0.attention.dense.weight", config, 8) is None


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    with pytest.raises(MissingExtra, match="gguf"):
        gguf_export.export(cast(Any, None))
