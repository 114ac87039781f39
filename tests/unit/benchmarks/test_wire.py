"""The comparison of wires: what counts as equal, and one small case as the benchmark runs it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from benchmarks.wire_bits import apart, compared, good
from benchmarks.wire_cases import WIRE_CASES


def test_the_largest_difference_and_the_signs_of_zeros() -> None:
    x = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor(2.0)}
    assert apart(x, x) == 0.0
    assert apart({**x, "b": torch.tensor(2.5)}, x) == 0.5
    assert apart({**x, "a": torch.tensor([1.0, -0.0])}, x) == math.inf
    assert apart({"a": x["a"]}, x) == math.inf


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"gradients": 1e-9}, False),
        ({"ratios": [0.27]}, False),
        ({"declares": [False], "ratios": [1.0], "reason": "a residual stream"}, True),
        ({"declares": [False], "ratios": [1.0]}, False),
    ],
)
def test_which_rows_meet_the_goal(changes: dict[str, Any], expected: bool) -> None:
    row = {"outputs": 0.0, "gradients": 0.0, "parameters": 0.0, "ratios": [0.25], "declares": [True]}
    assert good({**row, "reason": "", **changes}) is expected


@pytest.mark.usefixtures("one_thread")
def test_a_small_perceptron_sends_codes_and_a_transformer_floats() -> None:
    cases = {case.model: case for case in WIRE_CASES}
    row = compared(cases["mlp"], 1, quick=True)
    assert row["declares"] == [True]
    assert row["outputs"] == row["gradients"] == row["parameters"] == 0.0
    assert row["ratios"][0] < 0.35  # frames are small here
    assert good(compared(cases["distilgpt2"], 1, quick=True))
