"""Labels: whole numbers whatever holds them, and nothing that is cut off in silence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from distqat.errors import TaskError
from distqat.tasks import TaskSettings, get_task
from distqat.tasks.labels import class_index, column, whole


@pytest.mark.parametrize(
    "value",
    [3, 3.0, "3", " 3 ", np.int16(3), np.float32(3.0), np.array(3), np.array([3]), torch.tensor(3)],
)
def test_whole_numbers(value: Any) -> None:
    assert class_index(value) == 3
    assert type(class_index(value)) is int


def test_minus_one_is_a_number_for_the_task_to_judge() -> None:
    assert [class_index(value) for value in (-1, "-1", True)] == [-1, -1, 1]


WRONG: list[Any] = [2.7, -0.5, float("nan"), float("inf"), np.float64(2.5), torch.tensor(1.5)]
WRONG += ["2.7", "1_0", "cat", "", "٣", b"3", [1], [1, 0], {"a": 1}, np.array([1, 2])]


@pytest.mark.parametrize("value", WRONG)
def test_everything_else_is_refused(value: Any) -> None:
    with pytest.raises(TaskError, match="is not a class index"):
        class_index(value)


def test_whole_numbers_of_a_tensor() -> None:
    assert whole(torch.tensor([1.0, 2.0]), "labels").tolist() == [1, 2]
    for wrong in ([1.0, 2.7], [float("nan")], [float("inf"), 1.0]):
        with pytest.raises(TaskError, match="tokens are whole numbers"):
            whole(torch.tensor(wrong), "tokens")
    for value in ([1, 2.5], [1, None], "text", [[1, 2], [3]]):
        with pytest.raises(TaskError, match="tokens are"):
            get_task("llm", TaskSettings(sequence_length=4)).collate([{"tokens": value}])


def test_a_column_that_is_null_is_not_called_missing() -> None:
    assert column({"img": None, "image": 0}, ("image", "img"), "image") == 0
    with pytest.raises(TaskError, match="the label is null: its column 'labels' holds nothing"):
        column({"image": 1, "labels": None}, ("label", "labels"), "label")
    with pytest.raises(TaskError, match="no label: expected a column label or labels, found: image"):
        column({"image": 1}, ("label", "labels"), "label")
