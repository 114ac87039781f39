"""The documented data section loads as it stands."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from distqat.data.options import DataOptions

DOCUMENTED = {
    "dataset_name": "uoft-cs/cifar10",
    "dataset_split": "train",
    "task_type": "cv",
    "num_workers": 0,
    "precision": "fp16-mixed",
    "num_channels": 3,
    "img_size": 32,
}


def test_documented_example() -> None:
    assert DataOptions.model_validate(DOCUMENTED).model_dump(include=set(DOCUMENTED)) == DOCUMENTED


def test_offline_by_default() -> None:
    assert DataOptions().dataset_name == "digits"


@pytest.mark.parametrize(
    "wrong", [{"precison": "bf16"}, {"precision": "fp8"}, {"num_workers": -1}, {"img_size": 0}]
)
def test_unknown_keys_and_values(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DataOptions.model_validate(wrong)
