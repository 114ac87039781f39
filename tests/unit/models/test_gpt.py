"""The known shapes, and their stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.families import reference, through
from benchmarks.family_configs import FAMILIES, VOCABULARY
from safetensors.torch import save_file

from distqat.errors import ModelError, UnknownName
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


@pytest.mark.parametrize(
    ("model", "keys", "published"),
    [
        ("distilgpt2", {}, 81_912_576),
        ("gptneo", {}, 125_198_592),
        ("gptneo", {"shape": "125m"}, 125_198_592),
        ("gptneo", {"shape": "1.3B"}, 1_315_575_808),
    ],
)
def test_sizes_are_the_published_ones(model: str, keys: dict[str, Any], published: int) -> None:
    with torch.device("meta"):
        whole = sum(p.numel() for p in build_stage(f"{model}.full", keys).parameters())
    assert whole == published


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_any_number_of_bodies_with_local_and_global_attention(stages: int) -> None:
    names = ["head", *(f"body{n}" for n in range(1, stages - 1)), "tail"]
    keys = {**TINY["gptneo"], "stages": stages, "dropout": 0.0}
    parts = [build_stage(f"gptneo.{name}", keys).eval() for name in names]
    full = build_stage("gptneo.full", {**TINY["gptneo"], "tie": False}).eval()
    full.load_state_dict(full_state_dict([part.state_dict() for part in parts]))
    x = hidden = torch.randint(0, 41, (2, 9))
    for part in parts:
        hidden = part(hidden)
    assert torch.equal(hidden, full(x))
    blocks = [part.transformer.h[n] for part in parts for n in range(*part.span)]  # type: ignore[index, misc]
    assert [block.attn.attention_type for block in blocks] == ["global", "local"] * 2 + ["global"]


def test_cuts_follow_the_vocabulary() -> None:
    """The projection to 50257 tokens costs as much as five and a half of DistilGPT-2's blocks."""
    with torch.device("meta"):
        parts: Any = [build_stage(f"distilgpt2.{name}", {}) for name in ("head", "body", "tail")]
    assert [part.span for part in parts] == [(0, 2), (2, 5), (5, 6)]


def test_a_pretrained_model_settles_its_shape() -> None:
    with pytest.raises(ModelError, match="leave out n_embd"):
        build_stage("distilgpt2.full", {"pretrained": "somewhere", "n_embd": 3})


def test_wrong_keys_name_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean 'n_layer'"):
        build_stage("distilgpt2.full", {"n_layers": 3})
    with pytest.raises((ModelError, UnknownName), match=r"did you mean '1\.3b'"):
        build_stage("gptneo.full", {"shape": "1.3"})


@pytest.mark.parametrize(("model", "family"), [("distilgpt2", "gpt2"), ("gptneo", "gpt_neo")])
@pytest.mark.parametrize("bare", [False, True], ids=["whole", "bare"])
def test_pretrained_weights_of_both_ways_to_name_them(
    tmp_path: Path, model: str, family: str, bare: bool
) -> None:
    """Files of the bare model leave out `transformer.`; the tied head is in neither."""
    config = {"model_type": family, **FAMILIES[family]}
    whole = reference(config)
    state = {name: t.clone() for name, t in whole.state_dict().items() if name != "lm_head.weight"}
    if bare:
        state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(state, tmp_path / "model.safetensors")
    keys = {"pretrained": str(tmp_path), "tie": "average"}
    parts = [build_stage(f"{model}.{name}", keys).eval() for name in ("head", "body", "tail")]
    x = torch.randint(3, VOCABULARY, (2, 12))
    assert torch.equal(through(parts, x), whole(input_ids=x, use_cache=False).logits)
    first, last = parts[0].get_parameter("transformer.wte.weight"), parts[2].get_parameter("lm_head.weight")
    assert first is not last
    assert torch.equal(first, last)
