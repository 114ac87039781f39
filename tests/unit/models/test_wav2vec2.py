"""wav2vec 2.0 in stages is the unsplit model, and that of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distqat.errors import ModelError
from distqat.models import build_stage, full_state_dict, sample_input
from distqat.models.block_costs import balanced
from distqat.models.wav2vec2 import costs_of
from distqat.models.wav2vec2_stage import spans
from distqat.quant import QuantOptions, activate, quantize_module

BLOCKS = 5
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 8],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 4],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 11,
}
GROUP = {**SIZES, "mask_time_prob": 0.3, "mask_time_length": 3, "mask_feature_prob": 0.2}
STABLE = {**SIZES, "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
MEL = {key: value for key, value in STABLE.items() if not key.startswith("conv_")}
KINDS: dict[str, dict[str, Any]] = {
    "group": {"config": GROUP},
    "stable": {"config": STABLE},
    "mel": {"config": MEL, "front_end": {"kind": "mel", "bins": 20, "sampling_rate": 8000}},
}
CUTS = {"head": [0, 1], "body1": [1, 3], "body2": [3, 4], "tail": [4, BLOCKS]}
UNEVEN = {"head": [0, 4], "tail": [4, BLOCKS]}
LENGTHS = torch.tensor([1600, 1213, 700])


def full(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return build_stage("wav2vec2.full", KINDS[kind])


def stages_of(kind: str, cuts: dict[str, list[int]], whole: nn.Module) -> list[nn.Module]:
    stages = [build_stage(f"wav2vec2.{n}", {**KINDS[kind], "layers": cut}) for n, cut in cuts.items()]
    state = whole.state_dict()
    assert set(full_state_dict([stage.state_dict() for stage in stages])) == set(state)
    for stage in stages:
        stage.load_state_dict({name: state[name] for name in stage.state_dict()})
    return stages


def through(stages: list[nn.Module], x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    for stage in stages:
        x, lengths = stage(x, lengths).values()
    return x, lengths


def waves(seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    x = torch.randn(3, 1600)
    return x * (torch.arange(1600) < LENGTHS[:, None])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("cuts", [CUTS, UNEVEN], ids=["four", "two"])
@pytest.mark.parametrize("kind", KINDS)
def test_composed_stages_are_the_unsplit_model(kind: str, cuts: dict[str, list[int]], training: bool) -> None:
    whole = full(kind)
    stages = stages_of(kind, cuts, whole)
    results = []
    for modules in ([whole], stages):
        for module in modules:
            module.train(training)
        torch.manual_seed(7)
        logits, frames = through(modules, waves(), LENGTHS)
        logits.square().mean().backward()
        results.append((logits, frames))
    (expected, counts), (logits, frames) = results
    assert torch.equal(frames, counts)
    assert frames.dtype == torch.int64
    assert (logits - expected).abs().max().item() == 0.0
    gradients = {name: p.grad for stage in stages for name, p in stage.named_parameters()}
    for name, parameter in whole.named_parameters():
        assert (parameter.grad is None) == (gradients[name] is None), name
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, gradients[name]), name  # type: ignore[arg-type]
    assert sum(p.numel() for stage in stages for p in stage.parameters()) == sum(
        p.numel() for p in whole.parameters()
    )


@pytest.mark.parametrize("kind", ["group", "stable"])
def test_it_is_the_model_of_transformers(kind: str) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    ours = full(kind).eval()
    theirs = Wav2Vec2ForCTC(Wav2Vec2Config(**{"mask_time_prob": 0.0, **KINDS[kind]["config"]})).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 1600)
    logits = ours(x, torch.tensor([1600, 1600]))["x"]
    assert torch.allclose(logits, theirs(x).logits, atol=1e-6)
    if kind == "stable":  # group norm of transformers sees the padding
        mask = (torch.arange(1600) < LENGTHS[:, None]).long()
        padded, counts = ours(waves(), LENGTHS).values()
        expected = theirs(waves(), attention_mask=mask).logits
        for row, count in enumerate(counts.tolist()):
            assert torch.allclose(padded[row, :count], expected[row, :count], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_real_frame(kind: str) -> None:
    whole = full(kind).eval()
    together, counts = whole(waves(), LENGTHS).values()
    for row, count in enumerate(counts.tolist()):
        length = int(LENGTHS[row])
        alone = whole(waves()[row : row + 1, :length], LENGTHS[row : row + 1])["x"]
        assert alone.shape[1] == count
        assert torch.allclose(together[row, :count], alone[0], atol=1e-6)


def test_initialisation_is_finite_seeded_and_of_transformers_size() -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(0)
    theirs = Wav2Vec2ForCTC(Wav2Vec2Config(**GROUP)).state_dict()
    one, two = full("group").state_dict(), full("group").state_dict()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
        spread, expected = tensor.std(correction=0), theirs[name].std(correction=0)
        if "pos_conv" not in name:  # transformers' own draw is lost there: weight norm recomputes the weight
            assert torch.allclose(spread, expected, rtol=0.6, atol=1e-3), name
    conv = full("group").wav2vec2.encoder.pos_conv_embed.conv  # type: ignore[union-attr]
    assert torch.allclose(conv.weight, conv.parametrizations.weight.original1, atol=1e-6)  # type: ignore[union-attr]
    assert 0.5 < float(conv.weight.detach().std()) / (2 / (8 * 16) ** 0.5) < 2  # type: ignore[union-attr,operator,arg-type]


def test_masks_are_drawn_by_torch_and_in_training_only() -> None:
    whole = full("group")
    torch.manual_seed(1)
    first = whole(waves(), LENGTHS)["x"]
    np.random.seed(5)
    torch.manual_seed(1)
    assert torch.equal(whole(waves(), LENGTHS)["x"], first)
    torch.manual_seed(0)
    hidden = spans((200, 50), 0.3, 5, torch.device("cpu"))
    assert 0.2 < hidden.float().mean() < 0.3  # 0.3 less what overlaps
    runs = "".join("x" if mark else " " for mark in hidden[0].tolist())
    assert all(len(run) >= 5 for run in runs[:-5].split()[:-1])


def test_shapes_without_values() -> None:
    for kind, cuts in (("group", CUTS), ("mel", UNEVEN)):
        given: dict[str, Tensor] | None = None
        for name, cut in cuts.items():
            kwargs = {**KINDS[kind], "layers": cut}
            wanted = sample_input(f"wav2vec2.{name}", 2, kwargs)
            assert wanted is not None
            if given is not None:
                assert {n: t.shape for n, t in wanted.items()} == {n: t.shape for n, t in given.items()}
            with torch.device("meta"):
                stage = build_stage(f"wav2vec2.{name}", kwargs)
            assert all(p.is_meta for p in stage.parameters())
            given = stage(*(tensor.to("meta") for tensor in wanted.values()))
        assert given is not None
        assert given["x"].shape[2] == 11


@pytest.mark.parametrize("base", [False, True], ids=["ctc", "base"])
def test_weights_of_a_folder_load_per_stage(base: bool, tmp_path: Path, caplog: Any) -> None:
    """Also as older files name weight norm, without a CTC head, and with layer drop in the config."""
    from safetensors.torch import save_file

    whole = full("stable")
    state = {
        n.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): t.contiguous()
        for n, t in whole.state_dict().items()
    }
    if base:
        state = {n.removeprefix("wav2vec2."): t for n, t in state.items() if not n.startswith("lm_head")}
    save_file(state, tmp_path / "model.safetensors")
    config = {
        **STABLE,
        "model_type": "wav2vec2",
        "mask_time_prob": 0.0,
        "layerdrop": 0.1,
        "architectures": ["Wav2Vec2ForCTC"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with caplog.at_level("INFO"):
        stages = [
            build_stage(f"wav2vec2.{n}", {"pretrained": str(tmp_path), "layers": c})
            for n, c in UNEVEN.items()
        ]
    loaded = full_state_dict([stage.state_dict() for stage in stages])
    for name, tensor in whole.state_dict().items():
        assert torch.equal(loaded[name], tensor) or (base and name.startswith("lm_head")), name
    assert ("initialised afresh" in caplog.text) == base
    shape = sample_input("wav2vec2.tail", 2, {"pretrained": str(tmp_path)})
    assert shape is not None
    assert shape["x"].shape[2] == 16
    with pytest.raises(ModelError, match="keeps its own front end"):
        build_stage("wav2vec2.full", {"pretrained": str(tmp_path), "front_end": "mel"})


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"config": {"hiden_size": 16}}, "did you mean 'hidden_size'"),
        ({"config": {"layerdrop": 0.1}}, "layerdrop must be 0"),
        ({"config": {"add_adapter": True}}, "adapters"),
        ({"config": SIZES, "pretrained": "x"}, "either config"),
        ({"config": SIZES, "front_end": "mels"}, "front_end: 'mels' must be"),
        ({"config": SIZES, "front_end": {"kind": "mel", "bin": 3}}, "must be conv, mel"),
        ({"config": SIZES, "layers": [1, 2]}, "are no head"),
        ({"config": SIZES, "stages": 3, "stage_count": 2}, "stages: 3, but the pipeline has 2"),
        ({"config": SIZES, "stage_count": 2, "stage_index": 1}, "are no head"),
    ],
)
def test_keys_that_do_not_fit(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build_stage("wav2vec2.head", kwargs)


def test_the_front_end_counts_where_stages_are_balanced() -> None:
    """Of the published base model: convolutions over samples cost as much as several blocks."""
    from transformers import Wav2Vec2Config

    config = Wav2Vec2Config()
    windows = list(zip(config.conv_kernel, config.conv_stride, strict=True))
    costs = costs_of(config, windows, 1)
    per_frame = [10 * 512 * 64, *(3 * 512**2 * n for n in (32, 16, 8, 4)), 2 * 512**2 * 2, 2 * 512**2]
    assert costs.before == sum(per_frame) + 512 * 768 + 768 * 48 * 128
    assert costs.blocks == (4 * 768**2 + 2 * 768 * 3072,) * 12
    assert balanced(costs, 3) == [(0, 1), (1, 7), (7, 12)]
    with torch.device("meta"):
        tail = build_stage("wav2vec2.tail", {"stages": 3})
    assert sum(p.numel() for p in tail.parameters()) < 5 * 7.1e6 + 3e4


def test_quantized_with_its_positional_convolution() -> None:
    """Its weight is made anew from direction and length, then quantized; padding changes no real frame."""
    whole = full("group")
    report = quantize_module(whole, QuantOptions(), stage="full", first=True, last=True)
    assert [layer.kind for layer in report.layers].count("Conv1d") == 3
    assert len(report.layers) == 3 + 1 + 6 * BLOCKS + 1  # the last is the head
    assert "wav2vec2.encoder.pos_conv_embed.conv" in [layer.name for layer in report.layers]
    for seed in range(QuantOptions().warmup.calibrate_batches):
        whole(waves(seed), LENGTHS)
    activate(whole)
    whole(waves(), LENGTHS)["x"].square().mean().backward()
    learned = [p for p in whole.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learned)
    together, counts = whole.eval()(waves(), LENGTHS).values()
    alone = whole(waves()[2:, :700], LENGTHS[2:])["x"]
    assert torch.allclose(together[2, : counts[2]], alone[0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: str) -> None:
    # A kernel of 6: oneDNN 3.12 on processors with AMX gets bfloat16 convolutions wrong whose groups have 4
    # or 8 channels and whose kernel is a multiple of 8. No real model has such groups.
    options = {**KINDS[kind], "config": {**KINDS[kind]["config"], "num_conv_pos_embeddings": 6}}
    torch.manual_seed(0)
    whole = build_stage("wav2vec2.full", options)
    exact, _ = whole.eval()(waves(), LENGTHS).values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = whole(waves(), LENGTHS).values()
        whole.train()(waves(), LENGTHS)["x"].float().square().mean().backward()
    assert torch.allclose(logits.float(), exact, atol=0.05)
    assert all(p.grad is None or p.grad.isfinite().all() for p in whole.parameters())
