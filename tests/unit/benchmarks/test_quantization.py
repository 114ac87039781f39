"""The arithmetic of benchmarks/quantization.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from benchmarks.quantization import QUICK, SETTINGS, effort_of, parse, plan_of
from benchmarks.quantization_rows import AFTER, BREVITAS, DILOCO, FLOAT, GOALS, ONE, PROCESSES, Row, record
from benchmarks.quantization_work import Score, augmented, paired
from torch import nn

from distqat.quant import QuantOptions, activate, quantize_module


def row(work: str, setting: str, *values: float, way: str = ONE) -> Row:
    return Row(work, way, setting, [Score(torch.tensor(values, dtype=torch.float32))])


def recorded(of: Row, *others: Row) -> dict[str, Any]:
    return record(of, {(each.way, each.setting): each for each in (of, *others)})


def test_samples_are_compared_in_pairs() -> None:
    """A model that is wrong where the other is has no interval, however unsure both are."""
    one = [Score(torch.tensor([1.0, 0, 1, 0]))]
    assert paired(one, one) == (0.0, 0.0)
    mean, half = paired(one, [Score(torch.tensor([1.0, 1, 1, 0]))])
    assert (mean, half) == (0.25, pytest.approx(1.96 * 0.5 / 2))


def test_worse_is_points_of_accuracy_or_percent_of_the_loss() -> None:
    digits = recorded(row("digits", "W8A8", 1, 1, 0, 0), row("digits", FLOAT, 1, 1, 1, 0))
    assert (digits["worse"], digits["goal"], digits["good"]) == (25.0, 0.1, False)
    text = recorded(row("text", "W8A8", 2.001, 2.001), row("text", FLOAT, 2, 2))
    assert text["worse"] == pytest.approx(0.05, abs=1e-3)
    assert text["good"]
    assert "goal" not in recorded(row("text", "W2A2", 2, 2), row("text", FLOAT, 2, 2))


def test_seeds_are_compared_one_by_one_and_with_quantizing_after_training() -> None:
    base = Row("text", ONE, FLOAT, [Score(torch.full((2,), 2.0)) for _ in range(3)])
    after, trained = (Row("text", way, "W4A16") for way in (AFTER, ONE))
    after.scores += [Score(torch.full((2,), value)) for value in (2.2, 2.2, 2.2)]
    trained.scores += [Score(torch.full((2,), value)) for value in (2.02, 2.04, 2.06)]
    found = record(trained, {(each.way, each.setting): each for each in (base, after, trained)})
    assert found["worse_by_seed"] == pytest.approx([1.0, 2.0, 3.0], abs=1e-3)
    assert found["interval_over_seeds"] == pytest.approx(4.303 * 1 / 3**0.5, abs=1e-3)
    assert found["never_worse_than_after"]
    assert found["recovered"] == pytest.approx(0.8, abs=1e-3)
    assert found["good"]
    trained.scores[2] = Score(torch.full((2,), 2.3))
    found = record(trained, {(each.way, each.setting): each for each in (base, after, trained)})
    assert not found["never_worse_than_after"]
    assert not found["good"]


def test_float_is_compared_with_nothing_and_processes_with_memory() -> None:
    assert "worse" not in recorded(row("digits", FLOAT, 1, 0))
    memory = row("digits", "W8A8", 1, 1, way=DILOCO)
    found = recorded(row("digits", "W8A8", 1, 0, way=PROCESSES), memory, row("digits", FLOAT, 0, 0))
    assert (found["than"], found["worse"]) == ("DiLoCo, W8A8", 50.0)
    assert "good" not in found


def test_ours_stands_beside_brevitas() -> None:
    ours, theirs = row("digits", "W4A4", 1, 0, 1, 0), row("digits", "W4A4", 1, 1, 1, 0, way=BREVITAS)
    found = recorded(ours, theirs, row("digits", FLOAT, 1, 1, 1, 1))
    assert found["than_brevitas"] == 25.0
    assert found["good_beside_brevitas"]  # the interval of four samples is wide
    assert "than_brevitas" not in recorded(theirs, ours, row("digits", FLOAT, 1, 1, 1, 1))


def test_flags() -> None:
    full, quick = parse(["--json", "x"]), parse(["--json", "x", "--quick"])
    assert plan_of(full, "digits")[ONE] == tuple(SETTINGS)
    assert plan_of(full, "text")[DILOCO] == ("W8A8", "W4A8", "W4A4")  # the others have no goal
    assert plan_of(quick, "text").keys() == {ONE, AFTER, DILOCO}
    assert plan_of(parse(["--json", "x", "--ways", "DiLoCo", "--settings", "W8A8"]), "digits") == {
        DILOCO: ("W8A8",)
    }
    assert effort_of(quick, "digits") == QUICK["digits"]
    assert effort_of(parse(["--json", "x", "--seeds", "2", "--steps", "40"]), "text").seeds == (0, 1)
    assert effort_of(full, "digits").judged >= 10_000
    assert effort_of(full, "digits").seeds == (0, 1, 2)


def test_the_goals_are_those_of_the_issue() -> None:
    assert GOALS["digits", ONE] == {"W8A8": 0.1, "W4A8": 0.1, "W4A4": 0.2, "W2A2": 1.5}
    assert GOALS["digits", DILOCO] == {"W8A8": 0.15, "W4A8": 0.15, "W4A4": 0.4, "W2A2": 3.0}


def test_augmented_images_differ_and_come_again_with_the_seed() -> None:
    x = torch.zeros(3, 1, 8, 8)
    one, again, other = (augmented(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == x.shape
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.filterwarnings("ignore")
def test_brevitas_takes_the_place_of_our_layers() -> None:
    """At 8 bits its layer gives what ours gives, up to steps of different origin."""
    pytest.importorskip("brevitas")
    from benchmarks.quantization_brevitas import replaced

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    ours, x = copy.deepcopy(plain), torch.randn(32, 1, 6, 6)
    quantize_module(ours, QuantOptions(), stage="whole", first=True, last=True)
    ours.train()
    ours(x)
    activate(ours)
    replaced(plain, ours)
    assert [type(layer).__name__ for layer in plain] == ["QuantConv2d", "ReLU", "Flatten", "QuantLinear"]
    for _ in range(20):
        plain(x)
    plain.eval()
    ours.eval()
    assert (plain(x) - ours(x)).abs().max() < 0.03
    assert (plain(x) != ours(x)).any()
