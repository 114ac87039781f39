"""The known shapes, and their stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distqat.errors import ModelError
from distqat.models import build_stage, full_state_dict, sample_input

TINY: dict[str, dict[str, Any]] = {
    "distilgpt2": {"n_layer": 4, "n_embd": 16, "n_head": 2, "vocab_size": 41, "n_positions": 32},
    "gptneo": {"num_layers": 5, "hidden_size": 16, "num_heads": 2, "vocab_size": 41, "window_size": 3},
}


@pytest.mark.parametrize("model", TINY)
def test_stages_equal_the_untied_full_model(model: str) -> None:
    full = build_stage(f"{model}.full", {**TINY[model], "tie": False}).eval()
    stages = [build_stage(f"{model}.{name}", TINY[model]).eval() for name in ("head", "body", "tail")]
    full.load_state_dict(full_state_dict([stage.state_dict() for stage in stages]))
    x = hidden = torch.randint(0, 41, (2, 9))
    for name, stage in zip(("head", "body", "tail"), stages, strict=True):
        sample = sample_input(f"{model}.{name}", 2, {**TINY[model], "sequence_length": 9})
        assert sample is not None
        assert (sample["x"].shape, sample["x"].dtype) == (hidden.shape, hidden.dtype)
        hidden = stage(hidden)
    assert torch.equal(hidden, full(x))


@pytest.mark.parametrize(("model", "published"), [("distilgpt2", 81_912_576), ("gptneo", 125_198_592)])
def test_sizes_are_the_published_ones(model: str, published: int) -> None:
    with torch.device("meta"):
        whole = sum(p.numel() for p in build_stage(f"{model}.full", {}).parameters())
    assert whole == published


def test_a_pretrained_model_settles_its_shape() -> None:
    with pytest.raises(ModelError, match="leave out n_embd"):
        build_stage("distilgpt2.full", {"pretrained": "somewhere", "n_embd": 3})
