"""Every model of the registry in a size for tests, and the cuts that it is tried under.

A new model gets a line in MODELS; tests/contract/test_models.py says so when it has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from distqat.models import build_stage, sample_input


@dataclass(frozen=True)
class Cut:
    """The stages of one pipeline, in order: `head body1 body2 tail`."""

    stages: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Keys of every entry, such as `cut`."""
    each: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Keys of some entries, by stage: `{"head": {"layers": [0, 1]}}`."""

    @property
    def names(self) -> list[str]:
        return self.stages.split()


@dataclass(frozen=True)
class SmallModel:
    """What makes a model small, and pipelines in which each of its stages occurs."""

    keys: Mapping[str, Any] = field(default_factory=dict)
    """Keys of every entry, of `full` too."""
    cuts: tuple[Cut, ...] = ()
    full: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `full` only, such as `tie: false`."""
    integers: int | None = None
    """Integer inputs are drawn below this; None: they stay what sample_input says."""


@dataclass(frozen=True)
class SmallStage:
    """One entry of a pipeline: builds the stage as a server does."""

    model_name: str
    kwargs: Mapping[str, Any]
    integers: int | None

    def build(self) -> nn.Module:
        return build_stage(self.model_name, self.kwargs)

    def sample(self, batch_size: int) -> dict[str, Any]:
        made = sample_input(self.model_name, batch_size, self.kwargs)
        assert made is not None, f"{self.model_name} is registered without a sample input"
        return made


IMAGES = {"num_classes": 4, "num_channels": 1, "img_size": 8}
RESNET_CUTS = (
    Cut("front back"),
    Cut("head tail", {"cut": ["layer1.1"]}),
    Cut("head body tail"),
    Cut("head body1 body2 tail", {"cut": ["layer1.1", "layer3.1", "layer4.1"]}),
)
RESNET = SmallModel({**IMAGES, "width": 1 / 32}, RESNET_CUTS)
UNEVEN = Cut(
    "head body tail",
    each={"head": {"layers": [0, 1]}, "body": {"layers": [1, 3]}, "tail": {"layers": [3, 4]}},
)

MODELS: dict[str, SmallModel] = {
    "mlp": SmallModel(
        {**IMAGES, "hidden": 8, "depth": 4, "dropout": 0.25},
        (
            Cut("front back"),
            Cut("head tail", {"cut": ["fc"]}),
            Cut("head body tail"),
            Cut("head body1 body2 body3 tail"),
        ),
    ),
    "resnet18": RESNET,
    "resnet50": RESNET,
    "resnet101": SmallModel(
        {**IMAGES, "width": 1 / 64},
        (Cut("front back", {"cut": ["layer3.6"]}), Cut("head body tail")),
    ),
    "hf": SmallModel(
        {
            "config": {
                "model_type": "llama",
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "vocab_size": 20,
            },
            "sequence_length": 6,
        },
        (UNEVEN,),
        full={"tie": False},
        integers=20,
    ),
    "dcgan": SmallModel(
        {"num_channels": 1, "img_size": 16, "latent": 4, "width": 4}, (Cut("generator discriminator"),)
    ),
    "distilgpt2": SmallModel(
        {"n_layer": 3, "n_embd": 16, "n_head": 2, "n_positions": 8, "vocab_size": 20, "sequence_length": 6},
        (Cut("head body tail"),),
        full={"tie": False},
        integers=20,
    ),
    "gptneo": SmallModel(
        {
            "num_layers": 4,
            "hidden_size": 16,
            "num_heads": 2,
            "max_position_embeddings": 8,
            "window_size": 3,
            "vocab_size": 20,
            "sequence_length": 6,
        },
        (Cut("head body1 body2 tail", {"stages": 4}),),
        full={"tie": False},
        integers=20,
    ),
    "gcn": SmallModel(
        {"num_classes": 4, "in_features": 3, "hidden": 8, "depth": 4, "dropout": 0.25},
        (Cut("front back"), Cut("head tail", {"cut": ["conv2"]}), Cut("head body tail")),
        integers=5,  # nodes that edges may join
    ),
    "ppo": SmallModel(
        {"in_features": 3, "num_actions": 2, "hidden": 8, "depth": 3},
        (Cut("front back"), Cut("head tail", {"cut": ["out"]}), Cut("head body tail")),
    ),
    "wav2vec2": SmallModel(
        {
            "config": {
                "conv_dim": [8, 8],
                "conv_kernel": [10, 8],
                "conv_stride": [20, 16],
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "num_conv_pos_embeddings": 8,
                "num_conv_pos_embedding_groups": 2,
                "vocab_size": 12,
            },
        },
        (UNEVEN, Cut("head body1 body2 tail", {"stages": 4})),
    ),
}


def stages_of(model: str, cut: Cut, small: SmallModel | None = None) -> list[SmallStage]:
    """The stages of one pipeline of a model, each told its place as a pipeline tells it."""
    small = small or MODELS[model]
    place = {"stage_count": len(cut.names)}
    return [
        SmallStage(
            f"{model}.{name}",
            {**place, "stage_index": index, **small.keys, **cut.keys, **cut.each.get(name, {})},
            small.integers,
        )
        for index, name in enumerate(cut.names)
    ]


def full_stage(model: str) -> SmallStage:
    """The unsplit model."""
    small = MODELS[model]
    return SmallStage(f"{model}.full", {**small.keys, **small.full}, small.integers)


def stage_of(entry: str) -> SmallStage:
    """An entry of the registry, from the first pipeline that it occurs in.

    AssertionError with what to do for a model or a stage that the table does not know.
    """
    model, _, stage = entry.rpartition(".")
    where = "MODELS of tests/contract/small_models.py"
    assert model in MODELS, f"{entry!r} has no small size to be tested in: add {model!r} to {where}"
    if stage == "full":
        return full_stage(model)
    for cut in MODELS[model].cuts:
        for found, name in zip(stages_of(model, cut), cut.names, strict=True):
            if name.rstrip("0123456789") == stage:
                return found
    raise AssertionError(f"{entry!r} occurs in no pipeline: add a Cut with {stage!r} to {model!r} in {where}")
