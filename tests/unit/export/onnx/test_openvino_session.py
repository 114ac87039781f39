"""OpenVINO, where it is installed: the answers of ONNX Runtime, and all products in 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.unit.export.onnx.test_onnx_model import HOW
from tests.unit.export.quantized import first_batch, quantized, tiny_config

from distqat.errors import ExportError
from distqat.export.onnx.onnx_model import onnx_models
from distqat.export.onnx.openvino_session import OpenvinoSession
from distqat.export.onnx.ort_session import OrtSession


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "resnet18", "resnet18 W4A4", "distilgpt2 per_token", "wav2vec2"])
def test_answers_are_those_of_onnx_runtime(name: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    name, _, how = name.partition(" ")
    model, task, samples = quantized(tiny_config(name, **HOW[how]))
    batch = first_batch(task, samples)
    models = onnx_models(model, batch.inputs)
    onnx.save(models.integer, str(tmp_path / "model.onnx"))
    second, first = OpenvinoSession(tmp_path / "model.onnx"), OrtSession(tmp_path / "model.onnx")
    assert set(second.inputs) == set(first.inputs)
    given = {name: batch.inputs[name].numpy() for name in first.inputs}
    expected, found = (next(iter(session.run(given).values())) for session in (first, second))
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.99
    assert second.products[0] == sum(product.weight_bits > 0 for product in models.products)


@pytest.mark.slow
def test_what_it_cannot_load_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"OpenVINO cannot load model\.onnx"):
        OpenvinoSession(tmp_path / "model.onnx")
