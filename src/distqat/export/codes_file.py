"""`--format safetensors`: integer codes, steps and the configuration; loads back to the same outputs.

`layer.weight.codes` (int8) stands in place of `layer.weight`; `layer.weight_quant.log_step` has the steps,
`embedding.weight.steps` those of an embedding's rows. The codes of a tied embedding are those of its layer.
Everything else is as in the state dict, biases as the forward pass rounds them. Loading multiplies codes by
steps; quantizing that again gives the same codes, so outputs are equal to the bit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from distqat.checkpoint import write_model
from distqat.checkpoint.assembled_model import read_model
from distqat.errors import ExportError
from distqat.export.agreement_report import ExportReport, Sizes
from distqat.export.answers_report import answers_report
from distqat.export.checker import FakeQuantized, batches
from distqat.export.export_request import ExportRequest
from distqat.export.joined_stages import JoinedStages
from distqat.export.output_agreement import compare
from distqat.quant import WeightQuantizer, quantizers
from distqat.quant.parametrized import settle_computed_weights
from distqat.quant.quantized_embedding import QuantEmbedding, RowQuantizer, TiedRows, table_codes
from distqat.quant.quantized_layers import QuantizedLayer

MODEL, CODES, STEPS = "model.safetensors", ".codes", ".steps"
_STATISTICS = (".counts", ".batches")


def export(request: ExportRequest) -> ExportReport:
    """Write the file, load it into the same model, built anew, and compare. Raises ExportError."""
    path = request.folder / MODEL
    request.folder.mkdir(parents=True, exist_ok=True)
    tensors = integer_state(request.model.settled())
    config = json.dumps(request.config, sort_keys=True)
    write_model(path, tensors, {"distqat": request.description.to_json(), "config": config})
    loaded = request.build()
    load_codes(loaded, path)
    return _check(request, loaded, path)


@torch.no_grad()
def integer_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with codes for weights. Raises ExportError while a quantizer calibrates."""
    for name, quantizer in quantizers(model):
        if quantizer.state == "calibrating":
            raise ExportError(f"{name} is still calibrating, so there are no integers to export; train on")
    state = {name: t.detach() for name, t in model.state_dict().items() if not name.endswith(_STATISTICS)}
    for name, layer, weight_quant in _layers(model):
        state[f"{name}.weight{CODES}"] = weight_codes(layer, weight_quant)
        state[f"{name}.weight_quant.log_step"] = weight_quant.log_step.detach()  # a method may have moved it
        del state[f"{name}.weight"]
        bias = layer.used_bias()
        if bias is not None:
            state[f"{name}.bias"] = bias.detach()
    for name, table in _tables(model):
        if isinstance(table.row_quant, RowQuantizer):
            codes, steps = table_codes(table)
            state |= {f"{name}.weight{CODES}": codes, f"{name}.weight{STEPS}": steps}
        del state[f"{name}.weight"]
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


@torch.no_grad()
def weight_codes(layer: QuantizedLayer, quantizer: WeightQuantizer) -> Tensor:
    """The integers of a layer's weight, int8 in its shape."""
    values: Tensor = quantizer(layer.weight)
    return (values / quantizer.step_of_each(layer.weight)).round().to(torch.int8)


@torch.no_grad()
def load_codes(model: nn.Module, path: Path) -> None:
    """Make `model` the fake-quantized model of the file, its quantizers frozen.

    Raises CheckpointError for no such file, ExportError for another model's.
    """
    found = read_model(path)
    settle_computed_weights(model)
    tied = {f"{name}.weight" for name, table in _tables(model) if isinstance(table.row_quant, TiedRows)}
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    for name, own in state.items():
        stored = found.get(name, found.get(f"{name}{CODES}"))
        if stored is None and not name.endswith(_STATISTICS):
            raise ExportError(f"{path} lacks {name!r}, which the model of the configuration has")
        if stored is not None and stored.shape != own.shape:
            raise ExportError(f"{path}: {name!r} is {list(stored.shape)}, wanted is {list(own.shape)}")
        if stored is not None and name in found:
            own.copy_(stored)
    for name, layer, weight_quant in _layers(model):
        codes = found[f"{name}.weight{CODES}"].to(layer.weight.dtype)
        layer.weight.copy_(codes * weight_quant.step_of_each(layer.weight))
    for name, table in _tables(model):
        if isinstance(table.row_quant, RowQuantizer):
            steps = found[f"{name}.weight{STEPS}"][:, None]
            table.weight.copy_(found[f"{name}.weight{CODES}"] * steps)
    for child in model.modules():
        if isinstance(child, QuantizedLayer):
            child.snaps_bias = False  # it is rounded already
    for _, quantizer in quantizers(model):
        quantizer.freeze()
    model.eval()


def _layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer, WeightQuantizer]]:
    """Quantized layers whose weight no module needs in float."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, QuantizedLayer)]
    others = [module for module in model.modules() if not isinstance(module, QuantEmbedding)]
    owners = Counter(id(p) for module in others for p in module.parameters(recurse=False))
    for name, layer in layers:
        if isinstance(layer.weight_quant, WeightQuantizer) and owners[id(layer.weight)] == 1:
            yield name, layer, layer.weight_quant


def _tables(model: nn.Module) -> list[tuple[str, QuantEmbedding]]:
    return [(name, child) for name, child in model.named_modules() if isinstance(child, QuantEmbedding)]


def _check(request: ExportRequest, loaded: JoinedStages, path: Path) -> ExportReport:
    model, samples, description = request.model, request.samples, request.description
    task = description.task()
    models = {"fake-quantized": FakeQuantized(model.eval()), "exported": FakeQuantized(loaded)}
    scores = compare(
        task, samples, batches(task, samples), models, reference="fake-quantized", exported="exported"
    )
    tables = [each for _, each in _tables(model) if isinstance(each.row_quant, RowQuantizer)]
    weights = sum(layer.weight.numel() for _, layer, _ in _layers(model))
    weights += sum(table.weight.numel() for table in tables)
    sizes = Sizes(4 * sum(p.numel() for p in model.parameters()), path.stat().st_size, 4 * weights, weights)
    report = answers_report(request, scores, "safetensors", path.name, sizes)
    if scores.agreement.largest_error == 0:
        return report
    return replace(report, failures=("the loaded model's outputs differ from those of the model it is of",))
