"""From the entries of a pipeline to stages that fit together."""

from __future__ import annotations

from typing import Any

import pytest

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_module, check_model, stage_kwargs
from distqat.errors import ModelError
from distqat.models import full_state_dict

SMALL = {"num_classes": 4, "width": 0.0625}


def config(*entries: dict[str, Any]) -> Config:
    data = {"img_size": 8, "num_channels": 1}
    quant = {"enabled": False}
    return Config.model_validate({"data": data, "quant": quant, "model_pipeline": {"pipeline": [*entries]}})


def resnets(*names: str, **keys: Any) -> list[dict[str, Any]]:
    return [{"model_name": f"resnet18.{name}", **SMALL, **keys} for name in names]


@pytest.mark.parametrize(
    "names",
    [("front", "back"), ("head", "tail"), ("head", "body", "tail"), ("head", "body1", "body2", "tail")],
)
def test_the_stages_of_a_pipeline_are_the_whole_model(names: tuple[str, ...]) -> None:
    run, full = config(*resnets(*names)), config(*resnets("full"))
    check_model(run)
    stages = [build_module(run, name).state_dict() for name in names]
    whole = build_module(full, "full").state_dict()
    assert full_state_dict(stages).keys() == whole.keys()


def test_a_stage_is_counted_among_those_of_its_model() -> None:
    names = [{"model_name": "mlp.front"}, *resnets("head", "body", "tail")]
    places = [stage_kwargs(config(*names), stage) for stage in ("front", "head", "body", "tail")]
    assert [(place["stage_index"], place["stage_count"]) for place in places] == [
        (0, 1),
        (0, 3),
        (1, 3),
        (2, 3),
    ]


def test_all_entries_of_a_model_have_one_cut() -> None:
    cut = ["layer3.1"]
    check_model(config(*resnets("front", "back", cut=cut)))
    with pytest.raises(ModelError, match=r"'back' is told cut: None, stage 'front' cut: \['layer3.1'\]"):
        check_model(config(*resnets("front", cut=cut), *resnets("back")))
