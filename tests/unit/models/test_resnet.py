"""That stages equal the unsplit model is tested for all models together: tests/contract/test_models.py."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distqat.errors import ModelError
from distqat.models import build_stage, sample_input
from distqat.models.balanced_cuts import balanced_cuts, part_costs
from distqat.models.resnet import DEPTHS, block_shapes

NARROW: dict[str, Any] = {"num_classes": 5, "num_channels": 1, "img_size": 16, "width": 0.125}
PARAMETERS = {"resnet18": 11_689_512, "resnet50": 25_557_032, "resnet101": 44_549_160}  # as published
MACS = {"resnet18": 1_814_073_344, "resnet50": 4_089_184_256, "resnet101": 7_801_405_440}


def macs(name: str, kwargs: dict[str, Any]) -> int:
    """Counted, on the meta device."""
    with torch.device("meta"), torch.no_grad():
        module = build_stage(name, kwargs).eval()
        sample = sample_input(name, 1, kwargs)
        assert sample is not None
        with FlopCounterMode(display=False) as counter:
            module(*sample.values())
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("model", DEPTHS)
def test_it_is_the_published_model(model: str) -> None:
    with torch.device("meta"):
        full = build_stage(f"{model}.full", {"num_classes": 1000, "img_size": 224})
    assert sum(p.numel() for p in full.parameters()) == PARAMETERS[model]
    assert macs(f"{model}.full", {"num_classes": 1000, "img_size": 224}) == MACS[model]
    names = full.state_dict().keys()
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.1.weight", "fc.bias"} <= names
    assert f"layer3.{DEPTHS[model][2] - 1}.conv2.weight" in names


@pytest.mark.parametrize("img_size", [8, 16, 17, 32, 64, 65, 97, 224])
@pytest.mark.parametrize("model", DEPTHS)
def test_costs_of_blocks_are_those_counted(model: str, img_size: int) -> None:
    kwargs = {**NARROW, "img_size": img_size}
    shapes = block_shapes(model, img_size, NARROW["width"])
    for at in range(2, 5):
        place = {"cut": [shapes[at].name, shapes[at + 1].name], "stage_index": 1}
        assert macs(f"{model}.body", {**kwargs, **place}) == shapes[at].macs


@pytest.mark.parametrize("img_size", [32, 224])
@pytest.mark.parametrize(("model", "stages"), [("resnet18", 2), ("resnet50", 3), ("resnet101", 4)])
def test_compute_is_balanced(model: str, stages: int, img_size: int) -> None:
    names = ["head", *["body"] * (stages - 2), "tail"]
    shares = [
        macs(f"{model}.{name}", {"img_size": img_size, "stage_index": i, "stage_count": stages})
        for i, name in enumerate(names)
    ]
    assert max(shares) <= 1.25 * sum(shares) / stages


def test_cuts_lie_inside_a_layer_where_that_is_better() -> None:
    with torch.device("meta"):
        back = build_stage("resnet101.back", {})
    names = [name for name, _ in back.named_modules() if re.fullmatch(r"layer\d\.\d+", name)]
    assert names[0] == "layer3.9"


def test_the_cut_of_resnet18_is_behind_layer2() -> None:
    """Where checkpoints of two stages have it, whatever the width and for both stems."""
    for img_size in (16, 32, 224):
        for width in (0.25, 1.0):
            shapes = block_shapes("resnet18", img_size, width)
            costs = [shape.macs for shape in shapes]
            cuts = balanced_cuts(costs, 2)
            assert shapes[cuts[0]].name == "layer3.0"
            assert max(part_costs(costs, cuts)) <= 1.1 * sum(costs) / 2


@pytest.mark.parametrize("img_size", [8, 17, 32, 64, 65, 97])
@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_sample_input_of_the_back_is_what_the_front_returns(model: str, img_size: int) -> None:
    kwargs = {**NARROW, "img_size": img_size}
    with torch.device("meta"):
        front, back = (build_stage(f"{model}.{name}", kwargs) for name in ("front", "back"))
        x, hidden = (sample_input(f"{model}.{name}", 2, kwargs) for name in ("front", "back"))
        assert x is not None
        assert hidden is not None
        assert front(x["x"]).shape == hidden["x"].shape
        assert back(hidden["x"]).shape == (2, 5)


@pytest.mark.slow  # transformers takes seconds to import
@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_it_computes_what_transformers_computes(model: str) -> None:
    from transformers.models.resnet.configuration_resnet import ResNetConfig
    from transformers.models.resnet.modeling_resnet import ResNetForImageClassification

    ours = build_stage(f"{model}.full", {"img_size": 80, "num_classes": 5, "width": 0.125})
    growth = 1 if model == "resnet18" else 4
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[growth * count for count in (8, 16, 32, 64)],
        depths=list(DEPTHS[model]),
        layer_type="basic" if growth == 1 else "bottleneck",
        num_labels=5,
    )
    theirs = ResNetForImageClassification(config)
    theirs.load_state_dict({theirs_name(name): value for name, value in ours.state_dict().items()})
    x = torch.randn(2, 3, 80, 80)
    for training in (True, False):
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x).logits)


def theirs_name(name: str) -> str:
    """transformers' name of a parameter or buffer."""
    name = re.sub(r"^conv1\.", "resnet.embedder.embedder.convolution.", name)
    name = re.sub(r"^bn1\.", "resnet.embedder.embedder.normalization.", name)
    name = re.sub(r"^fc\.", "classifier.1.", name)
    block = re.match(r"layer(\d)\.(\d+)\.(.*)", name)
    if block is None:
        return name
    rest = re.sub(r"^downsample\.0", "shortcut.convolution", block[3])
    rest = re.sub(r"^downsample\.1", "shortcut.normalization", rest)
    rest = re.sub(r"^(conv|bn)(\d)", lambda m: f"layer.{int(m[2]) - 1}.{_KINDS[m[1]]}", rest)
    return f"resnet.encoder.stages.{int(block[1]) - 1}.layers.{block[2]}.{rest}"


_KINDS = {"conv": "convolution", "bn": "normalization"}


def test_stems_for_small_and_for_large_images() -> None:
    small, large = (
        build_stage("resnet18.front", {"img_size": size, "width": 0.125}).get_submodule("conv1")
        for size in (64, 65)
    )
    assert isinstance(small, nn.Conv2d)
    assert isinstance(large, nn.Conv2d)
    assert (small.kernel_size, small.stride) == ((3, 3), (1, 1))
    assert (large.kernel_size, large.stride) == ((7, 7), (2, 2))


def test_a_model_without_channels_is_refused() -> None:
    with pytest.raises(ModelError, match="width=0"):
        build_stage("resnet18.front", {"width": 0.001})
