"""The sizes that people train, and the cuts that they are looked at under: benchmarks/models.py.

A model of the registry without a line here is measured in its size for tests.
"""

from __future__ import annotations

from tests.contract.small_models import MODELS, Cut, SmallModel

from distqat.models import MODEL_TYPES

TWO, THREE, FOUR = Cut("front back"), Cut("head body tail"), Cut("head body1 body2 tail")
NETWORKS = Cut("generator discriminator")
CIFAR = {"num_classes": 10, "img_size": 32}
IMAGENET = {"num_classes": 1000, "img_size": 224}
IMAGE_CUTS = (TWO, THREE, FOUR)
QWEN = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
NEO_1_3B = {"num_layers": 24, "hidden_size": 2048, "num_heads": 16}

SIZES: dict[tuple[str, str], SmallModel] = {
    ("mlp", "depth 8, 32 px"): SmallModel({**CIFAR, "hidden": 1024, "depth": 8}, IMAGE_CUTS),
    ("resnet18", "32 px"): SmallModel(CIFAR, IMAGE_CUTS),
    ("resnet18", "224 px"): SmallModel(IMAGENET, IMAGE_CUTS),
    ("resnet50", "32 px"): SmallModel(CIFAR, IMAGE_CUTS),
    ("resnet50", "224 px"): SmallModel(IMAGENET, IMAGE_CUTS),
    ("resnet101", "224 px"): SmallModel(IMAGENET, (*IMAGE_CUTS, Cut("front back", {"cut": ["layer3.6"]}))),
    ("distilgpt2", "82M"): SmallModel({"sequence_length": 512}, (THREE,)),
    ("gptneo", "125M"): SmallModel(
        {"sequence_length": 512}, (THREE, Cut("head body1 body2 tail", {"stages": 4}))
    ),
    ("gptneo", "1.3B"): SmallModel(
        {**NEO_1_3B, "sequence_length": 512}, (THREE, Cut("head body1 body2 tail", {"stages": 4}))
    ),
    ("hf", "Qwen2.5-0.5B"): SmallModel(
        {"config": QWEN, "sequence_length": 512},
        (Cut("head tail", {"stages": 2}), Cut("head body1 body2 tail", {"stages": 4})),
    ),
    ("wav2vec2", "base, 1 s"): SmallModel({}, (THREE,)),
    ("dcgan", "32 px"): SmallModel({"num_channels": 3, "img_size": 32}, (NETWORKS,)),
    ("ppo", "CartPole"): SmallModel({"in_features": 4, "num_actions": 2, "hidden": 64}, (TWO,)),
    ("gcn", "cora"): SmallModel({"num_classes": 7, "in_features": 1433, "hidden": 64}, (TWO,)),
}


def sizes() -> dict[tuple[str, str], SmallModel]:
    """Every model of the registry, by name and size."""
    known = {model for model, _ in SIZES}
    models = dict.fromkeys(name.rpartition(".")[0] for name in sorted(MODEL_TYPES))
    return {**SIZES, **{(model, "as in tests"): MODELS[model] for model in models if model not in known}}
