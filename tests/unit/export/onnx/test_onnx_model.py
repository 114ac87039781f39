"""Exported models against the fake-quantized ones, in ONNX Runtime."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from tests.unit.export.quantized import first_batch, quantized, tiny_config

from distqat.errors import ExportError
from distqat.export.joined_stages import JoinedStages
from distqat.export.layer_agreement import compare_layers, first_apart
from distqat.export.onnx.onnx_model import OnnxModels, onnx_models
from distqat.export.onnx.ort_session import OrtSession, executed
from distqat.quant import ActivationQuantizer, quantizers
from distqat.tasks import Batch

HOW = {
    "": {},
    "W4A4": {"quant.weight.bits": 4, "quant.activation.bits": 4},
    "per_token": {"quant.activation.granularity": "per_token"},
    "lsq+": {"quant.activation.method": "lsq+", "quant.weight.granularity": "per_tensor"},
}


@dataclass
class Exported:
    name: str
    model: JoinedStages
    models: OnnxModels
    batch: Batch


# Tracing takes seconds, nearly all of it torch's own: each model once, one of them only with the slow tests.
SLOW = ("resnet18", "distilgpt2", "mlp lsq+")
FAST = ("mlp", "resnet18 W4A4", "distilgpt2 per_token")
MODELS = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.fixture(scope="module", params=MODELS)
def exported(request: pytest.FixtureRequest) -> Exported:
    name, _, how = request.param.partition(" ")
    model, task, samples = quantized(tiny_config(name, **HOW[how]))
    batch = first_batch(task, samples)
    return Exported(request.param, model, onnx_models(model, batch.inputs), batch)


def test_the_file_is_valid_and_takes_any_batch(exported: Exported) -> None:
    onnx.checker.check_model(exported.models.integer, full_check=True)
    x = exported.batch.inputs["x"].numpy()
    for value in (*exported.models.integer.graph.input, *exported.models.integer.graph.output):
        names = [dim.dim_param for dim in value.type.tensor_type.shape.dim if dim.dim_param]
        assert names == (["batch", "length"] if "gpt" in exported.name else ["batch"])
    session = OrtSession(exported.models.integer)
    assert session.inputs == ["x"]
    assert session.outputs == ["logits"]
    whole = session.run({"x": x})["logits"]
    assert np.allclose(session.run({"x": x[:3]})["logits"], whole[:3], atol=1e-6)
    assert len(session.run({"x": np.concatenate([x, x])})["logits"]) == 2 * len(whole)


def test_outputs_are_those_of_the_fake_quantized_model(exported: Exported) -> None:
    with torch.no_grad():
        expected = exported.model(*exported.batch.inputs.values())[0].numpy()
    found = OrtSession(exported.models.integer).run({"x": exported.batch.inputs["x"].numpy()})["logits"]
    floated = OrtSession(exported.models.float).run({"x": exported.batch.inputs["x"].numpy()})["logits"]
    error, floating = np.abs(found - expected).max(), np.abs(floated - expected).max()
    assert error < 0.01 * np.abs(expected).max()
    assert error < 0.75 * floating, "no nearer to the fake-quantized model than the float one is"


def test_all_layers_hold_the_same_codes(exported: Exported) -> None:
    layers = compare_layers(
        exported.model, OrtSession(exported.models.probed), exported.models.activations, exported.batch.inputs
    )
    used = {name for name, q in quantizers(exported.model) if isinstance(q, ActivationQuantizer)}
    assert {layer.name for layer in layers} == used
    assert all(layer.share_apart < 1e-3 and layer.steps_apart <= 1 for layer in layers), layers  # ties


def test_every_quantized_product_runs_on_integers(exported: Exported) -> None:
    ran = executed(exported.models.integer)
    quantized = [product for product in exported.models.products if product.weight_bits]
    assert all(product.form for product in quantized), quantized
    assert ran.integer_count == len(quantized)
    if "gpt" in exported.name:
        assert set(ran.integer) == {"MatMulIntegerToFloat"}
    by_rule = [p for p in exported.models.products if p.reason == "left in float by the configuration"]
    assert sum(ran.floating.values()) == len(by_rule)
    assert by_rule == []
    assert ran.attention == (2 if "gpt" in exported.name else 0)
    assert executed(exported.models.float).integer == {}


def test_nothing_of_this_machine_is_in_the_files(exported: Exported) -> None:
    for model in (exported.models.integer, exported.models.float):
        assert b".py" not in model.SerializeToString()
        assert b"distqat.export" not in model.SerializeToString()


def test_weights_are_codes(exported: Exported) -> None:
    """int8, or packed into bytes; an embedding that is the head's matrix is there once."""
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    codes = [t for t in exported.models.integer.graph.initializer if t.data_type in kinds]
    weights = sum(product.weights for product in exported.models.products)
    weights += 32 * 16 if "gpt" in exported.name else 0  # the positions
    held = sum(int(np.prod(tensor.dims)) for tensor in codes)
    most = 0.7 if "W4" in exported.name else 1.1
    assert (0.5 if "W4" in exported.name else 1) * weights <= held <= most * weights + 1000
    floats = [t for t in exported.models.integer.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert max(int(np.prod(tensor.dims)) for tensor in floats) <= 600


def test_a_model_that_calibrates_has_no_integers() -> None:
    config = tiny_config("mlp")
    model, task, samples = quantized(config)
    for _, quantizer in quantizers(model):
        quantizer.state_code.zero_()
    with pytest.raises(ExportError, match=r"front\.layer1\.\w+_quant is still calibrating"):
        onnx_models(model, first_batch(task, samples).inputs)


def test_an_older_operator_set_gives_the_same_answers(exported: Exported) -> None:
    if exported.name != "mlp":
        pytest.skip("one model is enough")
    older = onnx_models(exported.model, exported.batch.inputs, opset=18).integer
    onnx.checker.check_model(older, full_check=True)
    assert [(o.domain, o.version) for o in older.opset_import] == [("", 18)]
    assert older.ir_version == 8  # ONNX Runtime 1.17 reads up to 9
    given = {"x": exported.batch.inputs["x"].numpy()}
    found, expected = (OrtSession(m).run(given)["logits"] for m in (older, exported.models.integer))
    assert np.array_equal(found, expected)
    assert executed(older).integer == executed(exported.models.integer).integer


def test_a_wrong_bias_is_found_at_its_layer(exported: Exported) -> None:
    if exported.name != "mlp":
        pytest.skip("one model is enough")
    probed, probes, inputs = exported.models.probed, exported.models.activations, exported.batch.inputs
    changed = copy.deepcopy(exported.model)
    with torch.no_grad():
        changed.get_submodule("front.layer1").bias += 0.5
    layers = compare_layers(changed, OrtSession(probed), probes, inputs)
    found = first_apart(layers)
    assert found is not None
    assert found.name == layers[1].name
    assert layers[0].agrees


@pytest.mark.slow
@pytest.mark.parametrize("how", ["", "W4A4"])
def test_with_exact_biases_nearly_all_codes_are_the_same(how: str) -> None:
    model, task, samples = quantized(tiny_config("resnet18", **HOW[how]))
    batch = first_batch(task, samples)
    models = onnx_models(model, batch.inputs, exact=True)
    ran = executed(models.integer)
    assert set(ran.integer) == {"ConvInteger", "QGemm"}
    assert ran.integer_count == len(models.products)
    layers = compare_layers(model, OrtSession(models.probed), models.activations, batch.inputs)
    assert max(layer.share_apart for layer in layers[:8]) < 1e-3
