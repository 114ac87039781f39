"""wav2vec2, whose positional convolution has a computed weight, in ONNX Runtime."""

from __future__ import annotations

import pytest
import torch
from tests.unit.export.quantized import first_batch, quantized, tiny_config

from distqat.export.codes_file import integer_state
from distqat.export.onnx.onnx_model import onnx_models
from distqat.export.onnx.ort_session import OrtSession, executed
from distqat.export.output_agreement import overlapping
from distqat.quant import joints

POSITIONS = "full.wav2vec2.encoder.pos_conv_embed.conv"


@pytest.mark.slow
def test_every_layer_of_wav2vec2_runs_on_integers() -> None:
    model, task, samples = quantized(tiny_config("wav2vec2"))
    batch = first_batch(task, samples)
    models = onnx_models(model, batch.inputs)
    forms = {product.layer: product.form for product in models.products if product.weight_bits}
    assert len(forms) == 11
    assert all(forms.values())
    assert forms[POSITIONS] == "Q/DQ"
    ran = executed(models.integer)
    assert ran.integer == {"QLinearConv": 3, "MatMulIntegerToFloat": 8}
    assert ran.attention == 2

    session = OrtSession(models.integer)
    given = {name: batch.inputs[name].numpy() for name in session.inputs}
    found = session.run(given, session.outputs[:1])[session.outputs[0]]
    with torch.no_grad():
        expected = model(*batch.inputs.values())[0]
    ours, theirs = overlapping(torch.from_numpy(found), expected)  # padding apart
    assert ours.argmax(-1).eq(theirs.argmax(-1)).float().mean() > 0.99


@pytest.mark.slow
def test_codes_of_a_computed_weight_stand_in_the_file() -> None:
    model, _, _ = quantized(tiny_config("wav2vec2"))
    state = integer_state(model)
    assert state[f"{POSITIONS}.weight.codes"].dtype == torch.int8
    assert not any("parametrizations" in name for name in state)
    assert any(name == POSITIONS for name, _, _ in joints(model))
