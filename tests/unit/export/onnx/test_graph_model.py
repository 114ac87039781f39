"""A graph network takes any graph, not only one of the size that it was traced with."""

from __future__ import annotations

import pytest
import torch
from tests.unit.export.quantized import first_batch, quantized, tiny_config

from distqat.export.onnx.onnx_model import onnx_models
from distqat.export.onnx.ort_session import OrtSession, executed


@pytest.mark.slow
def test_a_graph_network_takes_any_graph() -> None:
    model, task, samples = quantized(tiny_config("gcn"))
    models = onnx_models(model, first_batch(task, samples, 1).inputs)
    assert executed(models.integer).integer == {"MatMulIntegerToFloat": 2}
    session = OrtSession(models.integer)
    generator = torch.Generator().manual_seed(0)
    for batch, nodes, edges in ((1, 7, 20), (3, 300, 900), (2, 2, 1)):
        inputs = {
            "x": torch.rand(batch, nodes, 64, generator=generator),
            "edges": torch.randint(nodes, (batch, 2, edges), generator=generator),
            "weights": torch.rand(batch, edges, generator=generator),
        }
        with torch.no_grad():
            expected_BNK = model(*inputs.values())[0]
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        found_BNK = torch.from_numpy(next(iter(session.run(given).values())))
        assert torch.allclose(found_BNK, expected_BNK, atol=1e-4)
