"""The model as one module in this process: what the baseline trains, and what a swarm is compared with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distqat.config import Config
from distqat.distributed.assembly.stage_factory import build_module
from distqat.distributed.assembly.teacher_model import load_teachers
from distqat.distributed.assembly.tied_weights import tie
from distqat.models import named_tensors, outputs_of_each
from distqat.models.auxiliary_loss import take_auxiliary_loss
from distqat.models.teacher import learn_from_stage
from distqat.quant import (
    activate,
    calibrated,
    check_observed,
    look_again,
    observe_data,
    quant_schedule,
    quantizers,
    reasons,
)


@dataclass(frozen=True)
class StepPlan:
    """How many steps of the baseline do what, as the rounds of a swarm would."""

    trained: int
    measured: int = 0
    """After those: weights stand, and BatchNorm's statistics are measured."""
    counting: int = 0
    """In float before quantizers count what they see, for as long as a round."""
    in_float: int = 0
    """With those in which they count."""

    @classmethod
    def of(cls, config: Config, norms: bool, wanted: float | None) -> StepPlan:
        """`norms`: there are BatchNorms.

        `wanted`: how many steps there should be in all; None: as many train as in all replicas of the swarm.
        """
        diloco, warmup = config.diloco, config.quant.schedule
        measures = norms and quant_schedule.measures(diloco.outer_steps, warmup)
        last = min(diloco.inner_steps, warmup.calibrate_batches) if measures else 0
        if wanted is None:
            trained = diloco.total_steps * config.world_size
        else:
            total = max(1, round(wanted))
            last = min(last, total // quant_schedule.FEWEST_ROUNDS)
            trained = total - last
        rounds = quant_schedule.float_rounds(diloco, warmup)
        in_float, before = (trained * each // diloco.outer_steps for each in (rounds, rounds - 1))
        return cls(trained, last, max(0, min(before, in_float - 1)), in_float)


class SwarmBaselineModel(nn.Module):
    """All stages of the configuration in one process, cut and initialised as servers would have them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        taught = {stage: build_module(config, stage, taught=True) for stage in config.stages}
        load_teachers(config, taught)
        self.stages = nn.ModuleDict(taught)
        tie(self.stages, config)
        self._quant = config.quant
        self.auxiliary_loss: Tensor | None = None

    def forward(self, *inputs: Tensor) -> Tensor | Mapping[str, Tensor]:
        """Through all stages; a single tensor if the last stage gives one, else named tensors."""
        named = self.outputs(*inputs)
        return named["x"] if list(named) == ["x"] else named

    def outputs(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The last stage's outputs by name; the stages' own losses together are in `auxiliary_loss`."""
        stages, named, losses = list(self.stages.values()), named_tensors(inputs), []
        for stage, outputs in zip(stages, outputs_of_each(stages, named), strict=True):
            named = outputs
            own = take_auxiliary_loss(stage)
            if own is not None and any(p.requires_grad for p in stage.parameters()):  # else it is frozen
                losses.append(own)
        self.auxiliary_loss = torch.stack(losses).sum() if losses else None
        return named

    @property
    def calibrating(self) -> bool:
        """Whether quantizers still have to see real data before the first quantized step."""
        return any(quantizer.state == "calibrating" for _, quantizer in quantizers(self))

    def follow_schedule(
        self, steps: Sequence[int], plan: StepPlan, measuring: Collection[int] = ()
    ) -> quant_schedule.ScheduleMoment:
        """As servers do before each step, with the steps of each stage: near the end quantizers stand still.

        `measuring`: positions of the stages whose weights stand, for BatchNorm's statistics. While a stage
        trains in float its quantizers look away, but for the last round. The moment of the stage that is
        furthest.
        """
        moments = []
        for position, (stage, step) in enumerate(zip(self.stages.values(), steps, strict=True)):
            now = quant_schedule.moment(
                step,
                plan.trained,
                self._quant.schedule,
                measuring=position in measuring,
                in_float=step < plan.in_float,
            )
            if now.steps_frozen:
                look_again(stage, last=True)
            quant_schedule.apply(stage, now)
            observe_data(stage, on=step >= plan.counting)
            moments.append(now)
        return max(moments, key=lambda now: quant_schedule.PHASES.index(now.phase))

    def begin_quantized(self, position: int) -> list[str]:
        """As a round does of a stage that has trained in float: sentences about quantizers that wait.

        Raises QuantError when what came cannot be quantized.
        """
        stage = list(self.stages.values())[position]
        check_observed(stage)
        learn_from_stage(stage)
        return reasons(activate(stage, wait=True))

    def activate_if_calibrated(self, shown: int) -> list[str]:
        """As servers do after each calibration batch: a stage that has seen enough becomes active.

        `shown`: forward passes that were for calibration. Sentences about quantizers that wait for values.
        Raises QuantError when what came cannot be quantized.
        """
        said: list[str] = []
        for stage in self.stages.values():
            calibrating = any(q.state == "calibrating" for _, q in quantizers(stage))
            if calibrating and calibrated(stage, self._quant, shown):
                check_observed(stage)
                learn_from_stage(stage)
                said += reasons(activate(stage, wait=True))
        return said
