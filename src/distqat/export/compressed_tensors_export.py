"""`--format compressed-tensors`: a folder that transformers and vLLM load as a quantized language model.

config.json says how it is quantized, model.safetensors holds the trained codes and steps under the names of
the family (`compressed_scheme`), and the tokenizer lies beside them. The check loads the folder as a user
does, by `AutoModelForCausalLM.from_pretrained`, and compares weights to the bit and answers.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distqat.checkpoint import write_model
from distqat.checkpoint.assembled_model import read_model
from distqat.errors import ExportError
from distqat.export.agreement_report import ExportReport, Sizes
from distqat.export.answers_report import answers_report
from distqat.export.checker import FakeQuantized, batches
from distqat.export.compressed_scheme import LayerScheme, quantization_config, stored_tensors
from distqat.export.export_request import ExportRequest
from distqat.export.joined_stages import JoinedStages
from distqat.export.output_agreement import RunsModel, Scores, compare
from distqat.export.tokenizer_files import write_tokenizer
from distqat.extras import require
from distqat.models.causal_lm import model_class
from distqat.models.causal_lm_stage import BlockStage
from distqat.quant.output_quantizer import quantizer_of
from distqat.quant.quantized_embedding import quantized_tables
from distqat.quant.quantized_layers import QuantizedLayer

FORMAT, EXTRA = "compressed-tensors", "compressed-tensors"
MODEL = "model.safetensors"
REFERENCE, EXPORTED = "fake-quantized", "exported"


def export(request: ExportRequest) -> ExportReport:
    """Write the folder, load it as transformers does, and compare. Raises ExportError, MissingExtra."""
    model, folder = request.model.settled(), request.folder
    stages = _stages(model)
    require("compressed_tensors", extra=EXTRA, why=f"--format {FORMAT}")
    layers = {name: each for stage in stages for name, each in _quantized(stage)}
    if not layers:
        raise ExportError("the model has no quantized layer; train it with quant.enabled")
    schemes = {name: LayerScheme.of(name, layer) for name, layer in layers.items()}
    config, whole = _outline(stages, schemes)
    linear = [name for name, each in whole.named_modules() if isinstance(each, nn.Linear)]
    config.quantization_config = quantization_config(schemes, linear)
    tensors = _tensors(stages, layers, schemes, whole)
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / MODEL, tensors, {"distqat": request.description.to_json()})
    config.save_pretrained(folder)
    write_tokenizer(request.description.tokenizer, folder)
    return _check(request, layers)


def _stages(model: JoinedStages) -> list[BlockStage]:
    stages = list(model.children())
    found = [stage for stage in stages if isinstance(stage, BlockStage)]
    if not found or len(found) < len(stages):
        raise ExportError(
            f"--format {FORMAT} takes causal language models of transformers (hf, gptneo); use --format "
            "onnx-int8 or safetensors for others"
        )
    return found


def _quantized(stage: nn.Module) -> list[tuple[str, QuantizedLayer]]:
    return [(name, each) for name, each in stage.named_modules() if isinstance(each, QuantizedLayer)]


def _outline(stages: list[BlockStage], schemes: Mapping[str, LayerScheme]) -> tuple[Any, nn.Module]:
    """The configuration to write, and the model of it without memory.

    A quantized head cannot be the float table of the embeddings, so it is untied.
    """
    config = copy.deepcopy(stages[-1].model_config)
    kind = model_class(config)
    with torch.device("meta"):
        whole: Any = kind._from_config(config, dtype=torch.float32)
    if any(f"{name}.weight" in whole.all_tied_weights_keys for name in schemes):
        config.tie_word_embeddings = False
        with torch.device("meta"):
            whole = kind._from_config(config, dtype=torch.float32)
    config.architectures, config.dtype = [kind.__name__], torch.float32
    return config, whole


@torch.no_grad()
def _tensors(
    stages: list[BlockStage],
    layers: Mapping[str, QuantizedLayer],
    schemes: Mapping[str, LayerScheme],
    whole: Any,
) -> dict[str, Tensor]:
    """All tensors of the folder; those that are tied to another are left out, as transformers does.

    Embeddings are written as the floats that their codes stand for.
    """
    state = {name: tensor for stage in stages for name, tensor in stage.state_dict().items()}
    for stage in stages:
        state |= {f"{name}.weight": table for name, table in quantized_tables(stage).items()}
    found: dict[str, Tensor] = {}
    for name in whole.state_dict():
        owner, _, kind = name.rpartition(".")
        if name in whole.all_tied_weights_keys:
            continue
        if owner in layers and kind == "weight":
            found.update(stored_tensors(owner, layers[owner], schemes[owner]))
            continue
        tensor = layers[owner].used_bias() if owner in layers and kind == "bias" else state.get(name)
        if tensor is None:
            raise ExportError(f"{name!r} of the model of transformers is not in the checkpoint")
        found[name] = tensor
    return {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}


class _Loaded:
    """The model of the folder, called as tasks call a model."""

    def __init__(self, model: Any, output: str) -> None:
        self._model, self._output = model, output

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        (ids,) = inputs.values()
        return {self._output: self._model(input_ids=ids, use_cache=False).logits}


def _check(request: ExportRequest, layers: Mapping[str, QuantizedLayer]) -> ExportReport:
    model, samples, description = request.model, request.samples, request.description
    task, path, wanted = description.task(), request.folder / MODEL, request.expected.agreement
    loaded = _load(request.folder)
    output = next(iter(FakeQuantized(model)(next(batches(task, samples)).inputs)))
    models: dict[str, RunsModel] = {REFERENCE: FakeQuantized(model), EXPORTED: _Loaded(loaded, output)}

    def scores() -> Scores:
        return compare(task, samples, batches(task, samples), models, reference=REFERENCE, exported=EXPORTED)

    found = scores()
    failures = []
    changed = [name for name, layer in layers.items() if not _same_weight(loaded, name, layer)]
    if changed:
        failures.append(f"weights that were read back are not those that were trained: {', '.join(changed)}")
    agreement = found.agreement
    if agreement.share < wanted:
        _round_as_trained(loaded, layers)
        failures.append(
            f"{agreement.share:.3%} of the answers agree, {wanted:.2%} were wanted; transformers rounds "
            "activations in its own way (docs/export.md), and where the loaded model rounds them as in "
            f"training, {scores().agreement.share:.3%} agree"
        )
    sizes = _sizes(model, layers, path)
    report = answers_report(request, found, FORMAT, path.name, sizes, "transformers", EXTRA)
    return replace(report, failures=tuple(failures))


def _load(folder: Path) -> Any:
    """As a user loads it; the bars of several loops over layers are left out."""
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    with contextlib.redirect_stderr(io.StringIO()):
        return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def _same_weight(loaded: nn.Module, name: str, layer: QuantizedLayer) -> bool:
    """Whether a layer of the loaded model, which has run, multiplies by the trained codes and steps."""
    found, trained = loaded.get_submodule(name).weight, layer.weight_quant(layer.weight)
    return isinstance(found, Tensor) and torch.equal(found, trained)


def _round_as_trained(loaded: nn.Module, layers: Mapping[str, QuantizedLayer]) -> None:
    """Quantize activations by the trained quantizers; what the package does to them then changes nothing.

    It does it to dynamic ones no more; static ones that lie on the grid stay where they are.
    """
    for name, layer in layers.items():
        own: Any = loaded.get_submodule(name)
        inputs = own.quantization_scheme.input_activations
        if inputs is None:
            continue
        if inputs.dynamic:
            own.quantization_enabled = False  # its weight is decompressed already
        quantizer = quantizer_of(layer.input_quant) or layer.input_quant
        own.register_forward_pre_hook(lambda _, given, q=quantizer: (q(given[0]), *given[1:]))


def _sizes(model: nn.Module, layers: Mapping[str, QuantizedLayer], path: Path) -> Sizes:
    """Of the file, and of the quantized layers in it."""
    state = read_model(path)
    floats = [each for layer in layers.values() for each in (layer.weight, layer.bias) if each is not None]
    return Sizes(
        float_file=4 * sum(p.numel() for p in model.parameters()),
        integer_file=path.stat().st_size,
        float_weights=4 * sum(tensor.numel() for tensor in floats),
        integer_weights=sum(t.nbytes for name, t in state.items() if name.rpartition(".")[0] in layers),
    )
