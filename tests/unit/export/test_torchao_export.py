"""What torchao cannot run is said before anything is written; with it installed, both models agree."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from tests.unit.export.quantized import first_batch, quantized, tiny_config

from distqat.errors import ExportError, MissingExtra
from distqat.export.torchao_export import torchao_copy

PER_TOKEN = {"quant.activation.granularity": "per_token"}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("resnet18", PER_TOKEN, r"front\.conv1 is a convolution"),
        ("mlp", {"quant.activation.method": "none"}, r"takes floats \(quant\.activation\.method: none\)"),
        ("mlp", {}, r"front\.layer1: torchao quantizes activations per token"),
        ("mlp", {**PER_TOKEN, "quant.first_last_bits": 4}, "with 8 bits"),
    ],
)
def test_what_it_cannot_run_is_refused(name: str, changes: dict[str, Any], said: str) -> None:
    model, _, _ = quantized(tiny_config(name, **changes))
    with pytest.raises(ExportError, match=said):
        torchao_copy(model)


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = quantized(tiny_config("mlp", **PER_TOKEN))
    for name in [name for name in sys.modules if name.startswith("torchao.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)  # as if it were not installed
    with pytest.raises(MissingExtra, match="torchao"):
        torchao_copy(model)


@pytest.mark.skipif(find_spec("torchao") is None, reason="the extra torchao is not installed")
def test_both_models_agree() -> None:
    model, task, samples = quantized(tiny_config("mlp", **PER_TOKEN))
    x = first_batch(task, samples).inputs["x"]
    with torch.no_grad():
        expected, found = model(x)[0], torchao_copy(model)(x)[0]
    assert (expected - found).abs().max() < 0.02 * expected.abs().max()
