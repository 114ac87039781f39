from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from distqat.quant import QuantOptions
from distqat.quant.options import WarmupOptions

PER_TOKEN = {"granularity": "per_token"}


def test_defaults() -> None:
    options = QuantOptions()
    assert options.enabled
    assert (options.weight.bits, options.activation.bits, options.first_last_bits) == (8, 8, 8)
    assert options.activation.signed == "auto"


@pytest.mark.parametrize(
    "section",
    [
        {"weight": {"bits": 1}},
        {"weight": {"bits": 9}},
        {"activation": {"bits": 16}},
        {"first_last_bits": 0},
        {"weight": {"bit": 8}},
        {"activation": {"signed": "sometimes"}},
        {"overrides": [{"weight": {"bits": 4}}]},
        {"warmup": {"calibrate_batches": 0}},
        {"warmup": {"float_share": 1.0}},
        {"warmup": {"float_share": 0.5}, "weight": {"method": "none"}, "activation": PER_TOKEN},
    ],
)
def test_what_cannot_be_is_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        QuantOptions.model_validate(section)


def test_a_section_as_in_yaml() -> None:
    options = QuantOptions.model_validate(
        {
            "weight": {"bits": 4},
            "activation": {"bits": 4, "signed": True},
            "skip": ["*.wte"],
            "overrides": [{"match": "layer4.*", "weight": {"bits": 2}}],
            "warmup": {"calibrate_batches": 2},
        }
    )
    assert options.activation.signed is True
    assert options.overrides[0].weight is not None
    assert options.overrides[0].weight.bits == 2
    assert QuantOptions.model_validate(options.model_dump()) == options


def test_the_documented_block_is_the_default() -> None:
    written = {
        "enabled": True,
        "weight": {"bits": 8, "granularity": "per_channel", "method": "lsq", "init": "mse"},
        "activation": {
            "bits": 8, "signed": "auto", "granularity": "per_tensor", "method": "lsq", "init": "mse"
        },
        "bias": {"snap": True},
        "first_last_bits": 8,
        "skip": [],
        "warmup": {"float_share": None, "calibrate_batches": 8, "freeze_bn_last": 0.1},
        "compile": False,
    }  # fmt: skip
    assert QuantOptions.model_validate(written) == QuantOptions()


def test_the_key_that_float_share_replaced_is_named_and_its_default_is_taken() -> None:
    """Models of earlier releases hold `float_steps: 0` in their configuration."""
    old = {"float_steps": 0, "calibrate_batches": 4}
    assert QuantOptions.model_validate({"warmup": old}).warmup == WarmupOptions(calibrate_batches=4)
    with pytest.raises(ValidationError, match="float_steps is gone; give float_share"):
        QuantOptions.model_validate({"warmup": {"float_steps": 30}})


@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({}, 0.3),
        ({"warmup": {"float_share": 0}}, 0.0),
        ({"weight": {"bits": 4}}, 0.3),
        ({"activation": {"bits": 4}}, 0.3),
        ({"weight": {"bits": 4}, "warmup": {"float_share": 0.5}}, 0.5),
        ({"warmup": {"float_share": 0.5}}, 0.5),
        ({"weight": {"method": "none"}, "activation": {"bits": 4, "granularity": "per_token"}}, 0.0),
    ],
)
def test_a_run_begins_in_float(given: dict[str, Any], share: float) -> None:
    options = QuantOptions.model_validate(given)
    assert options.schedule.float_share == share
    assert options.schedule.calibrate_batches == options.warmup.calibrate_batches
