"""Integer codes in a safetensors file, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.unit.export.quantized import first_batch, quantized, request_for, tiny_config

from distqat.distributed.assembly.evaluation import build_all
from distqat.errors import ExportError
from distqat.export.codes_file import export, integer_state, load_codes
from distqat.export.joined_stages import JoinedStages
from distqat.quant import quantizers

HOW: dict[str, dict[str, Any]] = {
    "mlp": {"quant.weight.bits": 4, "quant.bias.snap": True},
    "mlp minmax": {"quant.weight.method": "minmax", "quant.weight.granularity": "per_tensor"},
    "resnet18": {},
    "distilgpt2": {"quant.skip": [], "quant.activation.granularity": "per_token"},
}


SLOW = pytest.mark.slow
CASES = [
    ("mlp", "frozen"),
    ("mlp minmax", "active"),
    pytest.param("resnet18", "active", marks=SLOW),
    pytest.param("distilgpt2", "frozen", marks=SLOW),
]


@pytest.mark.parametrize(("name", "state"), CASES)
def test_the_loaded_model_gives_the_same_bits(name: str, state: Any, tmp_path: Path) -> None:
    config = tiny_config(name.split()[0], **HOW[name])
    model, task, samples = quantized(config, frozen=state == "frozen")
    report = export(request_for(model, config, samples[:16], tmp_path))
    blank = JoinedStages(build_all(config))
    load_codes(blank, tmp_path / "model.safetensors")
    assert report.failures == ()
    x = first_batch(task, samples).inputs["x"]
    assert torch.equal(blank(x)[0], model(x)[0])
    assert {quantizer.state for _, quantizer in quantizers(blank)} == {"frozen"}
    with safe_open(str(tmp_path / "model.safetensors"), "pt") as file:
        assert json.loads(file.metadata()["config"])["data"]["dataset_name"] == config.data.dataset_name


def test_codes_are_int8_of_the_bits_asked_for() -> None:
    model, _, _ = quantized(tiny_config("mlp", **{"quant.weight.bits": 3, "quant.first_last_bits": 3}))
    state = integer_state(model)
    codes = [tensor for name, tensor in state.items() if name.endswith(".codes")]
    assert len(codes) == 3
    assert all(tensor.dtype == torch.int8 and tensor.abs().max() == 3 for tensor in codes)
    assert not any(name.endswith(("layer1.weight", ".counts")) for name in state)


def test_a_tied_embedding_is_stored_once_and_a_table_of_its_own_with_its_steps() -> None:
    model, _, _ = quantized(tiny_config("distilgpt2"))
    state = integer_state(model)
    assert state["full.lm_head.weight.codes"].dtype == torch.int8
    assert not any(name.startswith("full.transformer.wte.") for name in state)
    codes, steps = (state[f"full.transformer.wpe.weight.{kind}"] for kind in ("codes", "steps"))
    assert (codes.dtype, steps.dtype, len(steps)) == (torch.int8, torch.float32, len(codes))
    assert "full.transformer.wpe.weight" not in state


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    config = tiny_config("mlp")
    model, _, samples = quantized(config)
    export(request_for(model, config, samples, tmp_path))
    with pytest.raises(ExportError, match=r"lacks 'front\.conv1\.weight'"):
        load_codes(JoinedStages(build_all(tiny_config("resnet18"))), tmp_path / "model.safetensors")
