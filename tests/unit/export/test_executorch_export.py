"""What ExecuTorch's XNNPACK cannot run is said first; with the package installed, a program runs."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.export.quantized import first_batch, quantized, request_for, tiny_config
from torch import nn

from distqat.errors import ExportError, MissingExtra
from distqat.export.executorch_export import TokenLinear, integer_copy
from distqat.export.export_request import export_as
from distqat.export.joined_stages import JoinedStages
from distqat.quant.output_quantizer import Unquantized
from distqat.quant.quantized_layers import to_quantized
from distqat.quant.token_quantizer import TokenQuantizer

PER_TOKEN = {"quant.activation.granularity": "per_token"}
GROUPS = {**PER_TOKEN, "quant.weight.granularity": "per_group"}
FOUR = {"quant.overrides": [{"match": "*", "weight": {"bits": 4}}]}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mlp", {}, "quantizes activations per token with 8 bits"),
        ("mlp", GROUPS, r"8 bits in groups.*match: '\*', weight: \{bits: 4\}"),
    ],
)
def test_what_it_cannot_run_is_refused(name: str, changes: dict[str, Any], said: str) -> None:
    model, _, _ = quantized(tiny_config(name, **changes))
    with pytest.raises(ExportError, match=said):
        integer_copy(model)


def test_a_convolution_is_refused() -> None:
    layer = nn.Conv2d(1, 1, 1)
    to_quantized(layer, Unquantized(), TokenQuantizer(8))
    with pytest.raises(ExportError, match=r"front\.conv is a convolution"):
        integer_copy(JoinedStages({"front": nn.ModuleDict({"conv": layer})}))


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)  # as if it were not installed
    config = tiny_config("mlp", **PER_TOKEN)
    model, _, samples = quantized(config)
    with pytest.raises(MissingExtra, match="executorch"):
        export_as("executorch", request_for(model, config, samples, tmp_path))


@pytest.mark.parametrize("changes", [PER_TOKEN, {**GROUPS, **FOUR}])
def test_the_layers_hold_the_trained_codes(changes: dict[str, Any]) -> None:
    importlib.import_module("torch.ao.quantization.fx._decomposed")  # the operators of the layers
    model, task, samples = quantized(tiny_config("mlp", **changes))
    x = first_batch(task, samples).inputs["x"]
    made = integer_copy(model)
    with torch.no_grad():
        expected, found = model(x)[0], made(x)[0]
    assert (expected - found).abs().max() < 0.03 * expected.abs().max()
    highest = 127 if changes is PER_TOKEN else 7
    layers = [each for each in made.modules() if isinstance(each, TokenLinear)]
    assert {int(each.codes.abs().max()) for each in layers} == {highest}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("executorch") is None, reason="the package executorch is not installed")
@pytest.mark.parametrize("changes", [PER_TOKEN, {**GROUPS, **FOUR}])
def test_the_program_runs_on_integers(changes: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config("mlp", **changes)
    model, _, samples = quantized(config)
    report = export_as("executorch", request_for(model, config, samples, tmp_path))
    assert report.operations is not None
    assert report.operations.integer == report.operations.quantizable == 3
    assert report.largest_error < 0.03 * report.largest_output
    assert (tmp_path / "model.pte").stat().st_size < 0.5 * report.sizes.float_file
