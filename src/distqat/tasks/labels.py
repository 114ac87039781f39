"""Columns of a sample, and labels that are class indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distqat.errors import TaskError
from distqat.tasks.base import Sample


def column(sample: Sample, names: Sequence[str], what: str) -> Any:
    """The first of the columns `names` that holds something. TaskError says whether it is missing or null."""
    for name in names:
        if sample.get(name) is not None:
            return sample[name]
    null = next((name for name in names if name in sample), None)
    if null is not None:
        raise TaskError(
            f"the {what} is null: its column {null!r} holds nothing; give it one, or leave the row out"
        )
    columns = ", ".join(sorted(map(str, sample))) or "none"
    raise TaskError(f"a sample has no {what}: expected a column {' or '.join(names)}, found: {columns}")


def whole(numbers: Tensor, what: str) -> Tensor:
    """Numbers as int64, floats among them where they are whole. TaskError for 2.7 and NaN."""
    if numbers.is_floating_point():
        wrong = numbers[~(numbers.isfinite() & (numbers == numbers.round()))]
        if wrong.numel():
            raise TaskError(f"{what} are whole numbers, and {float(wrong[0]):g} is none")
    return numbers.to(torch.int64)


def class_index(value: Any) -> int:
    """3 of 3, 3.0, "3" or an array of one; TaskError for 2.7, NaN, and what is not a number."""
    shape = getattr(value, "shape", None)
    if shape is not None and math.prod(shape) == 1:
        value = value.item()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    if isinstance(value, str):
        text = value.strip()
        if text.isascii() and text.removeprefix("-").isdecimal():
            return int(text)
        raise TaskError(f"label {value[:80]!r} is not a class index: classes are given by numbers, from 0")
    raise TaskError(f"label {str(value)[:80]} is not a class index, which is a whole number from 0")
