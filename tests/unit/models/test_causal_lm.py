"""Composed stages are the unsplit model of transformers, whatever the family and the cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.families import compare, reference, stages_of, through
from benchmarks.family_configs import BLOCKS, FAMILIES, GROUPED, SLIDING, VOCABULARY, WINDOW
from torch import Tensor

from distqat.errors import HubUnavailable, ModelError, UnknownName
from distqat.models import build_stage, sample_input
from distqat.models.block_costs import BlockCosts
from distqat.models.causal_lm import Hf, block_range

GPT2 = {"model_type": "gpt2", **FAMILIES["gpt2"]}
EVERYDAY = (
    "gpt2",
    "gpt_neo",
    "opt",
    "llama",
    "qwen2",
    "gemma3_text",
    "apertus",
    "mixtral",
    "mamba",
    "falcon",
)


@pytest.mark.parametrize(
    "family", [f if f in EVERYDAY else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
@pytest.mark.filterwarnings("ignore")
def test_composed_stages_are_the_unsplit_model(family: str) -> None:
    compared = compare(family)
    assert compared.exact, compared


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "mamba"])
def test_a_token_sees_only_those_before_it(family: str) -> None:
    stages = stages_of({"model_type": family, **FAMILIES[family]})
    x = torch.randint(3, VOCABULARY, (2, 12))
    changed = x.clone()
    changed[:, 8] = (changed[:, 8] + 1) % VOCABULARY
    before, after = through(stages, x), through(stages, changed)
    torch.testing.assert_close(after[:, :8], before[:, :8])  # experts multiply other tokens together
    assert not torch.allclose(after[:, 8:], before[:, 8:])


@pytest.mark.parametrize("family", ["mistral", "gpt_neo"])
def test_a_window_survives_the_cut(family: str) -> None:
    """With two blocks a token is seen through two windows and no further."""
    sizes = {**FAMILIES[family], "num_layers": 2, "attention_types": [[["local"], 2]]}
    config = {"model_type": family, **(sizes if family == "gpt_neo" else {**GROUPED, **SLIDING})}
    config |= {"num_hidden_layers": 2} if family == "mistral" else {}
    stages = stages_of(config, [(0, 1), (1, 2)])
    x = torch.randint(3, VOCABULARY, (1, 16))
    changed = x.clone()
    changed[:, 0] = (changed[:, 0] + 1) % VOCABULARY
    same = (through(stages, x) == through(stages, changed)).all(dim=2)[0]
    reach = 2 * (WINDOW - 1)
    assert not same[: reach + 1].any()
    assert same[reach + 1 :].all()


def test_training_is_seeded() -> None:
    one, other = (stages_of(GPT2)[0].train() for _ in range(2))
    other.load_state_dict(one.state_dict())
    x = torch.randint(3, VOCABULARY, (2, 8))
    outputs = []
    for stage in (one, other):
        torch.manual_seed(5)
        outputs.append(stage(x))
    assert torch.equal(*outputs)
    assert not torch.equal(one(x), one(x))  # dropout


def test_initialisation_is_seeded_and_that_of_the_family() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(build_stage("hf.body", {"config": GPT2, "layers": [1, 4]}).state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    weight = made[0]["transformer.h.2.mlp.c_proj.weight"]
    assert weight.std().item() == pytest.approx(0.02 / (2 * BLOCKS) ** 0.5, rel=0.1)  # GPT-2 paper, 2.3


def test_embeddings_are_tied_in_a_full_stage_and_untied_on_request() -> None:
    def weights(**keys: Any) -> list[Tensor]:
        full = build_stage("hf.full", {"config": GPT2, **keys})
        return [full.get_parameter("transformer.wte.weight"), full.get_parameter("lm_head.weight")]

    tied, untied = weights(), weights(tie=False)
    assert tied[0] is tied[1]
    assert untied[0] is not untied[1]


def test_numbers_tell_bodies_apart() -> None:
    def blocks(name: str) -> set[str]:
        stage = build_stage(f"hf.{name}", {"config": GPT2, "stages": 4})
        return {key.split(".")[2] for key in stage.state_dict() if key.startswith("transformer.h.")}

    found = [blocks(name) for name in ("head", "body1", "body2", "tail")]
    assert found == [{"0"}, {"1"}, {"2", "3"}, {"4"}]  # the tail has the projection to the vocabulary as well


@pytest.mark.parametrize(
    ("stage", "keys", "said"),
    [
        ("head", {}, "say which blocks"),
        ("head", {"layers": [1, 3]}, "are no head"),
        ("tail", {"layers": [1, 3]}, "are no tail"),
        ("body", {"layers": [3, 3]}, "from < to"),
        ("body", {"stages": 9}, "2 to 5"),
        ("body", {"stages": 3, "position": 3}, "outside of 3 stages"),
    ],
)
def test_cuts_that_cannot_be(stage: Any, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        block_range(stage, BlockCosts(0, (1,) * BLOCKS, 0), Hf(**keys))


def test_models_that_cannot_be() -> None:
    with pytest.raises(ModelError, match=r"must be \[0, 5\]"):
        build_stage("hf.full", {"config": GPT2, "layers": [0, 2]})
    with pytest.raises(ModelError, match="either config"):
        build_stage("hf.full", {})
    with pytest.raises((ModelError, UnknownName), match="did you mean 'gpt2'"):
        build_stage("hf.full", {"config": {"model_type": "gtp2"}})
    with pytest.raises((ModelError, HubUnavailable), match="hub cannot be reached"):
        build_stage("hf.full", {"pretrained": "acme/nothing-here"})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "zamba", **GROUPED, "tie_word_embeddings": False}, "besides the hidden states"),
        ({"model_type": "albert", "num_hidden_layers": 4}, "no causal language model"),
        ({"model_type": "dory", **GROUPED, "head_dim": 8}, "its 5 blocks run as 0, 1, 2, 3, 4, 2, 3, 4"),
        ({"model_type": "roc_bert", **GROUPED, "is_decoder": True}, "a stage without roc_bert.embeddings"),
        (
            {
                "model_type": "xlnet",
                "d_model": 32,
                "n_layer": 4,
                "n_head": 4,
                "d_inner": 48,
                "vocab_size": 61,
            },
            r"its first block takes \[2, 1, 32\], where hidden states are \[1, 2, 32\]",
        ),
    ],
)
def test_families_that_cannot_be_cut_say_so(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build_stage("hf.head", {"config": config, "layers": [0, 1]})


@pytest.mark.filterwarnings("ignore")
def test_a_padding_token_does_not_prevent_a_cut() -> None:
    """Some families look for it in what they are given, and warn."""
    build_stage("hf.head", {"config": {**GPT2, "pad_token_id": 0}, "layers": [0, 1]})


@pytest.mark.filterwarnings("ignore")
def test_what_a_family_looks_up_by_a_blocks_number_is_right_behind_a_cut() -> None:
    """Bamba's kinds of blocks follow from a list of numbers in its configuration."""
    assert compare("bamba").exact


def test_sequences_longer_than_the_table_of_positions() -> None:
    with pytest.raises(ModelError, match="knows 64 positions"):
        sample_input("hf.tail", 2, {"config": GPT2, "sequence_length": 65, "layers": [4, 5]})


def test_shapes_are_told_without_memory() -> None:
    sample = sample_input("hf.body", 2, {"config": GPT2, "sequence_length": 7, "layers": [1, 4]})
    assert sample is not None
    assert sample["x"].shape == (2, 7, 32)
    with torch.device("meta"):
        tail = build_stage("hf.tail", {"config": GPT2, "layers": [4, 5]})
    assert all(p.is_meta for p in tail.parameters())
    assert tail(sample["x"].to("meta")).shape == (2, 7, VOCABULARY)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("bare", [False, True], ids=["whole", "bare"])
def test_pretrained_weights_come_stage_by_stage(tmp_path: Path, shards: int, bare: bool) -> None:
    from safetensors.torch import save_file

    whole = reference(GPT2)
    state = {name: t.clone() for name, t in whole.state_dict().items() if name != "lm_head.weight"}
    if bare:
        state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    names = sorted(state)
    files = [f"model-{i}.safetensors" for i in range(shards)] if shards > 1 else ["model.safetensors"]
    for i, file in enumerate(files):
        save_file({name: state[name] for name in names[i::shards]}, tmp_path / file)
    if shards > 1:
        weight_map = {name: files[i % shards] for i, name in enumerate(names)}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    keys = {"pretrained": str(tmp_path), "stages": 3}
    stages = [build_stage(f"hf.{name}", keys).eval() for name in ("head", "body", "tail")]
    x = torch.randint(3, VOCABULARY, (2, 12))
    assert torch.equal(through(stages, x), whole(input_ids=x, use_cache=False).logits)
    stored = "h.4.mlp.c_fc.bias" if bare else "transformer.h.4.mlp.c_fc.bias"
    if shards == 1:
        save_file({n: t for n, t in state.items() if n != stored}, tmp_path / "model.safetensors")
        build_stage("hf.head", keys)
        with pytest.raises(ModelError, match=r"hold no 'transformer.h.4.mlp.c_fc.bias'"):
            build_stage("hf.tail", keys)
