"""What replicas of a stage must agree on, and what each may choose."""

from __future__ import annotations

import json
from typing import Any

import pytest

from distqat.config import agreement, agreement_digest, differing_keys, load_config
from distqat.errors import UnknownName

BASE = load_config("configs/mlp.yaml")


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ({"seed": 5}, ["seed"]),
        ({"diloco.inner_steps": 99}, ["diloco.inner_steps"]),
        ({"diloco.codec": "fp32"}, ["diloco.codec"]),
        ({"diloco.outer_optim.sgd_lr": 0.3}, ["diloco.outer_optim.sgd_lr"]),
        ({"data.img_size": 12}, ["data.img_size"]),
        ({"experiment_prefix": "other"}, ["run"]),
    ],
)
def test_what_must_agree_changes_the_digest_and_is_named(overrides: dict[str, Any], keys: list[str]) -> None:
    other = load_config("configs/mlp.yaml", overrides)
    assert agreement_digest(other, "front") != agreement_digest(BASE, "front")
    assert differing_keys(agreement(BASE, "front"), agreement(other, "front")) == keys


@pytest.mark.parametrize(
    "overrides",
    [
        {"device": "cuda:1"},
        {"diloco.batch_size_per_step": 1},
        {"diloco.inner_optim.adam_lr": 1e-5},
        {"diloco.averaging_timeout": 5.0},
        {"model_pipeline.forward_timeout": 5.0},
        {"server_base_port": 0, "client_port": 0, "monitor_port": 0},
        {"public_ip": "192.0.2.1"},
        {"log_level": "DEBUG", "log_dir": "elsewhere"},
        {"param_mirror.checkpoint_dir": "elsewhere"},
        {"wandb_project": "other"},
        {"world_size": 7},
        {"diloco.outer_optim.adam_lr": 0.5},  # not read: the outer optimizer is SGD
    ],
)
def test_what_may_differ_per_server_does_not(overrides: dict[str, Any]) -> None:
    assert agreement_digest(load_config("configs/mlp.yaml", overrides), "front") == agreement_digest(
        BASE, "front"
    )


def test_disable_quant_on_one_server_is_named() -> None:
    plain = load_config("configs/mlp.yaml", {"quant.enabled": False})
    assert "quant.enabled" in differing_keys(agreement(BASE, "front"), agreement(plain, "front"))


def test_adamw_agrees_on_the_adam_keys() -> None:
    def keys(**optim: Any) -> set[str]:
        changes = {f"diloco.outer_optim.{key}": value for key, value in optim.items()}
        return set(agreement(load_config("configs/mlp.yaml", changes), "front"))

    assert "diloco.outer_optim.adam_lr" in keys(type="adamw")
    assert "diloco.outer_optim.sgd_lr" not in keys(type="adamw")


def test_constructor_keys_of_the_stage_count() -> None:
    wide = [
        {"model_name": "mlp.front", "num_classes": 10, "width": 2.0},
        {"model_name": "mlp.back", "num_classes": 10},
    ]
    other = load_config("configs/mlp.yaml", {"model_pipeline.pipeline": wide})
    assert differing_keys(agreement(BASE, "front"), agreement(other, "front")) == ["model.width"]
    assert agreement_digest(other, "back") == agreement_digest(BASE, "back")


def test_stages_have_digests_of_their_own() -> None:
    assert agreement_digest(BASE, "front") != agreement_digest(BASE, "back")


def test_an_agreement_survives_json() -> None:
    mine = agreement(BASE, "front")
    assert differing_keys(mine, json.loads(json.dumps(mine))) == []


def test_an_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'front'"):
        agreement(BASE, "frnt")


def test_replicas_of_other_bits_or_methods_refuse_to_average() -> None:
    base = load_config("configs/resnet18.yaml")
    for key, value in (
        ("quant.weight.bits", 4),
        ("quant.activation.method", "lsq+"),
        ("quant.warmup.freeze_bn_last", 0.2),
    ):
        other = load_config("configs/resnet18.yaml", {key: value})
        assert differing_keys(agreement(base, "front"), agreement(other, "front")) == [key]
        assert agreement_digest(base, "front") != agreement_digest(other, "front")
    compiled = load_config("configs/resnet18.yaml", {"quant.compile": True})
    assert agreement(base, "front") == agreement(compiled, "front")
