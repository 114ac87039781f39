from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from distqat.errors import QuantError
from distqat.quant import QuantOptions, check_patterns, module_names
from distqat.quant.layer_rules import LayerBits, layer_bits, matches

STAGES = {
    "front": {"": False, "stem": True, "layer1": False, "layer1.0": True, "layer1.norm": False},
    "back": {"": False, "layer4": False, "layer4.0": True, "layer4.0.skip": True, "fc": True},
}


def options(**section: Any) -> QuantOptions:
    return QuantOptions.model_validate(section)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("layer4.*", "layer4.0.conv", True),
        ("layer4", "layer4.0.conv", True),
        ("layer4", "layer40", False),
        ("back.layer4.*", "layer4.0", True),
        ("front.layer4.*", "layer4.0", False),
        ("back", "layer4.0", True),
        ("*.conv", "layer4.0.conv", True),
        ("Layer4.*", "layer4.0", False),
        ("*", "fc", True),
    ],
)
def test_patterns(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, "back", name) is expected


def test_bits_by_precedence() -> None:
    rules = options(
        weight={"bits": 4},
        activation={"bits": 5},
        overrides=[
            {"match": "layer4.*", "weight": {"bits": 2}},
            {"match": "layer4.1", "activation": {"bits": 3}},
            {"match": "fc", "weight": {"bits": 6}},
        ],
        skip=["layer1"],
    )

    def bits(name: str, is_edge: bool = False) -> LayerBits | str:
        return layer_bits(rules, "back", name, is_edge=is_edge)

    assert bits("layer3") == LayerBits(4, 5, "auto")
    assert bits("stem", is_edge=True) == LayerBits(8, 8, "auto")
    assert bits("layer4.0") == LayerBits(2, 5, "auto")
    assert bits("layer4.1") == LayerBits(2, 3, "auto")
    assert bits("fc", is_edge=True) == LayerBits(6, 8, "auto")
    assert bits("layer1.0") == "layer1"


def test_patterns_that_name_something_anywhere_pass() -> None:
    check_patterns(
        options(
            skip=["layer4", "*norm*", "front.stem"], overrides=[{"match": "layer1.*", "weight": {"bits": 4}}]
        ),
        STAGES,
    )


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"skip": ["layr4.*"]}, r"quant.skip: 'layr4.\*' matches nothing.*'layer4'"),
        ({"overrides": [{"match": "fcc"}]}, r"quant.overrides: 'fcc' matches nothing.*'fc'"),
        ({"overrides": [{"match": "front.fc"}]}, r"'front.fc' matches nothing"),
        ({"overrides": [{"match": "layer1.norm"}]}, r"names 'layer1.norm', which holds no Linear"),
    ],
)
def test_patterns_that_name_nothing_are_errors(section: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantError, match=message):
        check_patterns(options(**section), STAGES)


def test_names_come_from_a_module_without_memory() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    assert module_names(module) == {"": False, "0": True, "1": False}


def test_the_former_default_patterns_may_name_nothing() -> None:
    """They were made for language models; a user's own pattern must name something, also beside them."""
    check_patterns(QuantOptions(), STAGES)
    check_patterns(options(skip=["*.wte", "*.wpe", "*LayerNorm*", "*lm_head*", "fc"]), STAGES)
    with pytest.raises(QuantError, match="matches nothing"):
        check_patterns(options(skip=["*.wte", "*.wtee"]), STAGES)
