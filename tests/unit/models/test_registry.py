from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distqat.errors import ModelError, UnknownName
from distqat.models import (
    MODEL_TYPES,
    build_stage,
    full_state_dict,
    named_tensors,
    register_expert_class,
    registry,
    sample_input,
)


def head_sample_input(batch_size: int, hid_dim: int) -> Tensor:
    return torch.empty((batch_size, hid_dim))


class Head(nn.Module):
    def __init__(self, hid_dim: int, out_dim: int = 3) -> None:
        super().__init__()
        self.ffn = nn.Linear(hid_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ffn(x)
        return out


class DefaultHead(Head):
    def __init__(self, hid_dim: int = 5) -> None:
        super().__init__(hid_dim)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(MODEL_TYPES)
    monkeypatch.setattr(registry, "_SAMPLE_INPUTS", dict(registry._SAMPLE_INPUTS))
    yield
    MODEL_TYPES.clear()
    MODEL_TYPES.update(before)


def shape_of(model_name: str, **kwargs: Any) -> torch.Size:
    sample = sample_input(model_name, 4, kwargs)
    assert sample is not None
    return sample["x"].shape


def test_a_registered_class_is_built_and_tells_its_input() -> None:
    assert register_expert_class("mymodel.head", head_sample_input)(Head) is Head
    stage = build_stage("mymodel.head", {"hid_dim": 6, "out_dim": 2, "num_classes": 10})
    assert stage(torch.zeros(1, 6)).shape == (1, 2)
    assert shape_of("mymodel.head", hid_dim=6, num_classes=10) == (4, 6)


def test_a_hand_written_entry_does_the_same_without_sample_input() -> None:
    MODEL_TYPES["mymodel.head"] = Head
    assert isinstance(build_stage("mymodel.head", {"hid_dim": 6}), Head)
    assert sample_input("mymodel.head", 4, {"hid_dim": 6}) is None


def test_both_ways_together_are_fine_and_repeating_is_too() -> None:
    MODEL_TYPES["mymodel.head"] = Head
    for _ in range(2):
        register_expert_class("mymodel.head", head_sample_input)(Head)
    assert MODEL_TYPES["mymodel.head"] is Head
    assert shape_of("mymodel.head", hid_dim=6) == (4, 6)


def test_a_file_that_is_loaded_twice_registers_its_class_twice() -> None:
    twin = type("Head", (Head,), {"__qualname__": Head.__qualname__, "__module__": Head.__module__})
    register_expert_class("mymodel.head", head_sample_input)(Head)
    register_expert_class("mymodel.head", head_sample_input)(twin)
    assert MODEL_TYPES["mymodel.head"] is twin


def test_a_name_belongs_to_one_class() -> None:
    register_expert_class("mymodel.head", head_sample_input)(Head)
    with pytest.raises(ModelError, match=r"mymodel.head.*already.*Head.*DefaultHead"):
        register_expert_class("mymodel.head", head_sample_input)(DefaultHead)


def test_sample_input_takes_what_is_missing_from_the_constructor() -> None:
    register_expert_class("mymodel.head", head_sample_input)(DefaultHead)
    assert shape_of("mymodel.head") == (4, 5)


def test_sample_input_names_what_is_missing() -> None:
    register_expert_class("mymodel.head", head_sample_input)(Head)
    with pytest.raises(ModelError, match="needs hid_dim"):
        sample_input("mymodel.head", 4, {})


def test_an_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"resnet18.frnt.*did you mean 'resnet18.front'"):
        build_stage("resnet18.frnt", {})


def test_a_key_that_nobody_takes_names_the_nearest() -> None:
    MODEL_TYPES["mymodel.head"] = Head
    with pytest.raises(ModelError, match=r"'hid_dm'; did you mean 'hid_dim'"):
        build_stage("mymodel.head", {"hid_dm": 6})


def test_what_a_constructor_raises_names_the_stage() -> None:
    MODEL_TYPES["mymodel.head"] = Head
    with pytest.raises(ModelError, match=r"mymodel.head.*hid_dim='six'"):
        build_stage("mymodel.head", {"hid_dim": "six"})
    with pytest.raises(ModelError, match=r"mlp.full.*depth=0"):
        build_stage("mlp.full", {"depth": 0})


def test_stages_return_names() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert named_tensors(a) == {"x": a}
    assert list(named_tensors((a, b))) == ["x", "x1"]
    assert named_tensors({"hidden": a, "mask": b}) == {"hidden": a, "mask": b}


def test_two_stages_with_one_name_cannot_be_assembled() -> None:
    with pytest.raises(ModelError, match=r"fc\.weight"):
        full_state_dict([{"fc.weight": torch.zeros(1)}, {"fc.weight": torch.zeros(1)}])


def test_importing_does_not_load_transformers() -> None:
    code = "import sys, distqat.models, distqat.quant; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
