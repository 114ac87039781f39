"""The arithmetic of benchmarks/quantization.py."""

from __future__ import annotations

import pytest
import torch
from benchmarks.quantization import (
    FLOAT,
    GOALS,
    QUICK,
    SETTINGS,
    Row,
    effort_of,
    judged,
    parse,
    settings_of,
)
from benchmarks.quantization_work import Score, augmented, paired


def row(work: str, setting: str, *values: float) -> Row:
    return Row(work, "one process", setting, [Score(torch.tensor(values, dtype=torch.float32))])


def test_samples_are_compared_in_pairs() -> None:
    """A model that is wrong where the other is has no interval, however unsure both are."""
    one = [Score(torch.tensor([1.0, 0, 1, 0]))]
    assert paired(one, one) == (0.0, 0.0)
    mean, half = paired(one, [Score(torch.tensor([1.0, 1, 1, 0]))])
    assert (mean, half) == (0.25, pytest.approx(1.96 * 0.5 / 2))


def test_worse_is_points_of_accuracy_or_percent_of_the_loss() -> None:
    digits = judged(row("digits", "W8A8", 1, 1, 0, 0), row("digits", FLOAT, 1, 1, 1, 0))
    assert (digits["worse"], digits["goal"], digits["good"]) == (25.0, 0.2, False)
    text = judged(row("text", "W8A8", 2.001, 2.001), row("text", FLOAT, 2, 2))
    assert text["worse"] == pytest.approx(0.05, abs=1e-3)
    assert text["good"]
    assert "goal" not in judged(row("text", "W4A4", 2, 2), row("text", FLOAT, 2, 2))


def test_float_is_compared_with_nothing() -> None:
    base = row("digits", FLOAT, 1, 0)
    assert judged(base, base).keys() == {"work", "way", "setting", "value", "s"}


def test_flags() -> None:
    full, quick = parse(["--json", "x"]), parse(["--json", "x", "--quick"])
    assert settings_of(full, "digits") == (tuple(SETTINGS), tuple(SETTINGS))
    assert settings_of(quick, "text") == (("W8A8", "W4A4"), ())
    assert effort_of(quick, "digits") == QUICK["digits"]
    assert effort_of(parse(["--json", "x", "--seeds", "2", "--steps", "40"]), "text").seeds == (0, 1)
    assert effort_of(full, "digits").judged >= 10_000
    assert effort_of(full, "digits").seeds == (0, 1, 2)


def test_the_goals_are_those_of_the_issue() -> None:
    assert GOALS["digits", "one process"] == {"W8A8": 0.2, "W4A8": 0.3, "W4A4": 0.5, "W2A2": 4.0}
    assert GOALS["digits", "DiLoCo"] == {"W8A8": 0.3, "W4A8": 0.4, "W4A4": 0.75, "W2A2": 5.0}


def test_augmented_images_differ_and_come_again_with_the_seed() -> None:
    x = torch.zeros(3, 1, 8, 8)
    one, again, other = (augmented(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == x.shape
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
