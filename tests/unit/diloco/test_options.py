"""The `diloco` section."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from distqat.diloco.options import DilocoOptions, InnerOptimOptions, OuterOptimOptions

DOCUMENTED = """
inner_optim: {type: "adam", adam_lr: 4e-4, adam_weight_decay: 0.1}
outer_optim: {type: "sgd", sgd_lr: 0.07, sgd_momentum: 0.9, sgd_nesterov: true}
inner_steps: 500
outer_steps: 100
batch_size_per_step: 64
averaging_timeout: 60.0
"""


def test_the_documented_section_loads() -> None:
    loaded = yaml.safe_load(DOCUMENTED)
    assert loaded["inner_optim"]["adam_lr"] == "4e-4"  # YAML 1.1 reads it as text
    options = DilocoOptions(**loaded)
    assert options.inner_optim.lr == 4e-4
    assert options.inner_optim.weight_decay == 0.1
    assert options.outer_optim.lr == 0.07
    assert options.outer_optim.weight_decay == 0.0
    assert options.total_steps == 50_000


def test_defaults_are_those_that_did_best() -> None:
    options = DilocoOptions()
    outer = options.outer_optim
    assert (outer.type, outer.lr, outer.sgd_momentum, outer.sgd_nesterov) == ("sgd", 0.7, 0.5, True)
    assert (options.codec, options.inner_steps, options.outer_steps) == ("int4", 30, 40)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_both_optimizers_know_all_types(name: str) -> None:
    options = DilocoOptions.model_validate({"inner_optim": {"type": name}, "outer_optim": {"type": name}})
    assert options.inner_optim.type == options.outer_optim.type == name


@pytest.mark.parametrize(
    "wrong",
    [
        {"inner_steps": 0},
        {"outer_steps": -1},
        {"batch_size_per_step": 0},
        {"gradient_accumulation_steps": 0},
        {"max_grad_norm": 0},
        {"max_grad_norm": float("inf")},
        {"averaging_timeout": 0},
        {"averaging_timeout": float("nan")},
        {"grace_spread": -1},
        {"max_delta_norm_ratio": 1},
        {"warmup_steps": -1},
        {"codec": "int5"},
        {"lr_schedule": "step"},
        {"inner_stepz": 3},
        {"inner_optim": {"adam_lr": -1}},
        {"inner_optim": {"adam_lr": float("nan")}},
        {"inner_optim": {"adam_beta1": 1.0}},
        {"outer_optim": {"type": "lion"}},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        DilocoOptions.model_validate(wrong)
    assert next(iter(wrong)) in str(caught.value)


def test_nesterov_without_momentum_says_what_to_do() -> None:
    with pytest.raises(ValidationError, match="set sgd_nesterov: false"):
        OuterOptimOptions(sgd_momentum=0.0)
    assert InnerOptimOptions(type="adam", sgd_nesterov=True, sgd_momentum=0.0).lr == 4e-4
