"""The baseline ends with the cause when its loss or gradients are not finite, and never with such a model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from distqat.config import Config, load_config
from distqat.distributed.assembly.stage_factory import build_task, open_data
from distqat.distributed.training import nonfinite_steps
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.distributed.training.nonfinite_steps import FiniteSteps, all_finite
from distqat.distributed.training.step_failures import SKIPS_END
from distqat.errors import RunFailed
from distqat.tasks import Batch

NAN = float("nan")


def config(name: str = "mlp", **changes: Any) -> Config:
    given = {"quant.enabled": False, "diloco.inner_optim.type": "sgd", **changes}
    return load_config(f"configs/{name}.yaml", {"data.img_size": 8, **given})


def batch(config: Config, value: float | None = None) -> Batch:
    made = build_task(config).collate([item.sample for item in open_data(config).take(8)])
    if value is not None:
        made.inputs["x"][0, 0, 0, 0] = value
    return made


def state_of(trainer: BaselineTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    """Neither weights nor the statistics of norms; and training goes on with the next batch."""
    narrow = [{"model_name": f"resnet18.{part}", "width": 0.0625} for part in ("front", "back")]
    given = config("resnet18", **{"model_pipeline.pipeline": narrow})
    trainer = BaselineTrainer(given, torch.device("cpu"), samples=800)
    trainer.step([batch(given)])
    before = state_of(trainer)
    assert math.isnan(trainer.step([batch(given, NAN)]))
    after = state_of(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert trainer.finite.skips == 1
    assert math.isfinite(trainer.step([batch(given)]))
    assert trainer.finite.skips == 0
    assert any(not torch.equal(before[name], tensor) for name, tensor in state_of(trainer).items())
    assert trainer.progress.step == 3
    trainer.finite.ended(trainer.model.parameters())


def test_a_rate_that_is_too_high_ends_the_run() -> None:
    given = config(**{"diloco.inner_optim.sgd_lr": 1e38})
    trainer = BaselineTrainer(given, torch.device("cpu"), samples=8000)
    steps = (trainer.step([batch(given)]) for _ in range(SKIPS_END + 5))
    with pytest.raises(RunFailed) as raised:
        list(steps)
    said = str(raised.value)
    assert said.startswith(f"the last {SKIPS_END} steps changed nothing: the loss is nan at step ")
    assert "learning rate 1e+38; lower the learning rate, set diloco.max_grad_norm" in said


def test_weights_that_the_last_step_ruined_are_no_model() -> None:
    counts = FiniteSteps()
    counts.took(1.0, gradients=True, step=1, lr=0.1)
    with pytest.raises(RunFailed, match=r"weights are not finite after step 1, learning rate 0\.1, so"):
        counts.ended([torch.ones(2), torch.tensor([NAN])])


def test_a_run_without_one_good_step_has_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(nonfinite_steps, "notice", said.append)
    counts = FiniteSteps()
    for step in range(1, 12):
        assert not counts.took(2.0, gradients=False, step=step, lr=0.1)
    assert len(said) == 1
    assert said[0] == (
        "the last 10 steps changed nothing: a gradient is not finite (loss 2) at step 10, learning rate 0.1"
    )
    with pytest.raises(RunFailed, match="the last 11 of 11 steps changed nothing: a gradient is not finite"):
        counts.ended([torch.ones(2)])


@pytest.mark.parametrize(
    ("losses", "model"),
    [
        ([1.0], True),
        ([NAN], False),
        ([1.0, NAN], False),
        ([1.0, NAN, NAN, NAN, NAN], False),
        ([NAN, 1.0], True),
        ([*[1.0] * 20, NAN, NAN], True),
        ([*[1.0] * 20, NAN, NAN, NAN], False),
    ],
)
def test_a_run_that_ends_in_such_steps_has_no_model(losses: list[float], model: bool) -> None:
    counts = FiniteSteps()
    for step, loss in enumerate(losses):
        counts.took(loss, gradients=True, step=step, lr=0.1)
    if model:
        counts.ended([torch.ones(2)])
        return
    with pytest.raises(RunFailed, match="changed nothing: the loss is nan"):
        counts.ended([torch.ones(2)])


def test_one_good_step_starts_the_count_again() -> None:
    counts = FiniteSteps()
    for step in range(4 * SKIPS_END):
        good = step % (SKIPS_END - 1) == 0
        assert counts.took(1.0 if good else NAN, gradients=True, step=step, lr=0.1) is good


def test_one_number_is_enough() -> None:
    assert all_finite([])
    assert all_finite([torch.ones(3), torch.zeros(2)])
    assert not all_finite([torch.ones(3), torch.tensor([1.0, float("inf")])])
    assert not all_finite([torch.tensor([NAN])])
