"""A founder's calibration comes to its end, whatever layers see; what cannot be quantized ends the run."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from tests.failover.memory_scene import batches
from tests.failover.round_scene import one_stage
from tests.swarm_scene import MemorySwarm
from torch import Tensor, nn

from distqat.diloco.options import DilocoOptions
from distqat.distributed.serving.forward_precision import ForwardPrecision
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.errors import QuantError, RemoteFault, RunFailed, SwarmError
from distqat.quant import QuantOptions, activate, quantize_module, quantizers

BATCHES = 3


class Gated(nn.Module):
    """A gate that is shut: what is behind it gets zeros."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.gate = gate
        self.fc, self.behind = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y + self.behind(y * self.gate)


def gated(gate: float, float_share: float = 0.0, **more: object) -> StageReplica:
    warmup = {"calibrate_batches": BATCHES, "float_share": float_share}
    options = QuantOptions.model_validate({"skip": [], "warmup": warmup, **more})
    module = Gated(gate)
    quantize_module(module, options, stage="full", first=True, last=True)
    precision = ForwardPrecision()
    return StageReplica(module, DilocoOptions(), options, stage="full", precision=precision, task=None)


def show(replica: StageReplica, number: int, *, commit: bool = True) -> None:
    replica.begin(f"{number}")
    replica.observe(0, {"x": torch.randn(2, 4)})
    if commit:
        replica.prepare()
        replica.commit_calibration()
    else:
        replica.abort()


def test_zeros_end_calibration_after_twice_its_batches_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    replica = gated(0.0)
    with caplog.at_level(logging.WARNING):
        for number in range(2 * BATCHES):
            assert replica.calibrating
            show(replica, number)
            show(replica, number, commit=False)  # an attempt that comes to nothing counts for nothing
    assert not replica.calibrating
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["full.behind"]
    assert {q.name: q.state for _, q in quantizers(replica.module)} == {
        "full.fc.weight_quant": "active",
        "full.fc.input_quant": "active",
        "full.behind.weight_quant": "active",
        "full.behind.input_quant": "waiting",
    }


def test_values_take_the_usual_time(caplog: pytest.LogCaptureFixture) -> None:
    replica = gated(1.0)
    with caplog.at_level(logging.WARNING):
        for number in range(BATCHES):
            assert replica.calibrating
            show(replica, number)
    assert not replica.calibrating
    assert not caplog.records


def test_when_a_waiting_quantizer_has_its_step_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    replica = gated(0.0)
    for number in range(2 * BATCHES):
        show(replica, number)
    replica.begin("a step")
    replica.abort()
    found = next(q for _, q in quantizers(replica.module) if q.state == "waiting")
    found.begin(torch.tensor(0.1))
    with caplog.at_level(logging.INFO):
        replica.begin("another")
    assert "full.behind.input_quant: values have come" in caplog.text


def test_after_rounds_in_float_those_that_wait_are_told_as_well(caplog: pytest.LogCaptureFixture) -> None:
    replica = gated(0.0, float_share=0.5)
    assert replica.in_float
    assert not replica.calibrating, "no batch is for calibration alone"
    replica.begin("in float")
    replica.observe(0, {"x": torch.randn(2, 4)})
    replica.commit(1.0)
    activate(replica.module, wait=True)  # what a round has made of it
    replica.in_float = False
    with caplog.at_level(logging.WARNING):
        replica.begin("the next step")
    (record,) = caplog.records
    assert record.getMessage().startswith("full.behind: only zeros came here")


def test_what_cannot_be_quantized_is_said_in_the_round_that_would() -> None:
    replica = gated(1.0, float_share=0.5, activation={"signed": False})
    for counting in (False, True):
        replica.counting = counting
        replica.begin(f"{counting}")
        replica.observe(0, {"x": torch.randn(8, 4)})
        if counting:
            with pytest.raises(QuantError, match="is unsigned"):
                replica.prepare()
        else:
            replica.prepare()
        replica.abort()


def test_nan_everywhere_is_said_at_prepare_where_the_attempt_can_be_undone() -> None:
    replica = gated(math.nan)
    for number in range(2 * BATCHES - 1):
        show(replica, number)
    for number in range(3):  # as a trainer does, until it believes it
        with pytest.raises(QuantError, match=r"full\.behind\.input_quant: every batch"):
            show(replica, number)
        replica.abort()
    assert replica.calibrating


async def test_the_first_stage_with_nan_is_the_one_that_is_named() -> None:
    config = one_stage("mlp", quantize=True)
    entries = [{"model_name": f"mlp.{s}", "num_classes": 10, "hidden": 16} for s in ("front", "back")]
    pipeline = config.model_pipeline.model_validate({"pipeline": entries, "microbatches": 8})
    config = config.model_copy(update={"model_pipeline": pipeline})
    async with MemorySwarm(config) as swarm:
        with torch.no_grad():
            next(iter(swarm.stages[0].replica.module.parameters())).fill_(math.nan)

        async def calibrate() -> None:
            for number, batch in enumerate(batches(config, 20), start=1):
                await swarm.stepper.calibrate(batch, swarm.hops, number, 0)

        with pytest.raises(SwarmError) as raised:
            await calibrate()
        assert isinstance(raised.value, RemoteFault)
        assert raised.value.at == "front.0.0.0"


def test_the_baseline_ends_with_that_sentence() -> None:
    config = one_stage("mlp", quantize=True)
    trainer = BaselineTrainer(config, torch.device("cpu"))
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.nan)
    shown = batches(config, 20)

    def calibrate() -> None:
        for batch in shown:
            trainer.calibrate(batch)

    with pytest.raises(RunFailed, match="NaN or infinity"):
        calibrate()


def test_the_baseline_says_so_at_the_same_step() -> None:
    config = one_stage("mlp", quantize=True, outer_steps=2)
    quant = config.quant.model_dump()
    quant |= {"activation": {"signed": False}, "warmup": {"float_share": 0.5}}
    trainer = BaselineTrainer(
        config.model_copy(update={"quant": QuantOptions.model_validate(quant)}), torch.device("cpu")
    )
    first, second = batches(config, 2)
    for batch in (first, second):
        for part in batch:
            part.inputs.update({name: tensor - 0.5 for name, tensor in part.inputs.items()})
    trainer.step(first)
    with pytest.raises(RunFailed, match="is unsigned"):
        trainer.step(second)
