"""The fake-quantized model beside its own weights without quantizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.export.quantized import first_batch, quantized, state_of, tiny_config

from distqat.distributed.assembly.evaluation import build_all
from distqat.export.float_answers import POINTS, float_answers
from distqat.export.joined_stages import JoinedStages


@pytest.mark.parametrize("changes", [{}, {"quant.activation.granularity": "per_token"}])
def test_without_quantizers_it_is_the_float_model(changes: dict[str, Any]) -> None:
    few = {"quant.weight.bits": 2, "quant.activation.bits": 4, "quant.first_last_bits": 4, **changes}
    config = tiny_config("mlp", **few)
    model, task, samples = quantized(config)
    floating = JoinedStages(build_all(tiny_config("mlp", **{"quant.enabled": False})))
    floating.load_state_dict({k: v for k, v in model.state_dict().items() if k in floating.state_dict()})
    x = first_batch(task, samples, len(samples)).inputs["x"]
    with torch.no_grad():
        expected, before = floating.eval()(x)[0], model(x)[0]
    answers = float_answers(model, task, samples)
    assert answers.agreement == float((expected.argmax(1) == before.argmax(1)).float().mean()) < 1
    assert answers.places == len(samples)
    assert len(answers.points) == min(POINTS, expected.numel())
    found = torch.tensor(sorted(answers.points))[:, 0]
    torch.testing.assert_close(found, expected.flatten().sort().values, atol=0.02, rtol=0)
    with torch.no_grad():
        assert torch.equal(model(x)[0], before)  # quantizers are back
    assert state_of(model).keys() == state_of(quantized(config)[0]).keys()


def test_rows_of_embeddings_are_in_float_too() -> None:
    config = tiny_config("distilgpt2")
    model, task, samples = quantized(config)
    floating = JoinedStages(build_all(tiny_config("distilgpt2", **{"quant.enabled": False})))
    floating.load_state_dict({k: v for k, v in model.state_dict().items() if k in floating.state_dict()})
    with torch.no_grad():
        expected = floating.eval()(*first_batch(task, samples, 4).inputs.values())[0].flatten()
        rounded = model(*first_batch(task, samples, 4).inputs.values())[0].flatten()
    points = torch.tensor(float_answers(model, task, samples[:4]).points)
    assert nearest(points[:, 0], expected) < nearest(points[:, 0], rounded) / 10


def nearest(some: torch.Tensor, others: torch.Tensor) -> float:
    """The largest distance to the next of the others."""
    return float((some[:, None] - others).abs().amin(1).max())
