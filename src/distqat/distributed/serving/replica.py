"""One replica of a stage: its module, its optimizer, and the attempt at a step that it is working on.

Everything here is synchronous and runs on the compute thread. What a forward pass changes besides gradients
(BatchNorm statistics, calibration) is undone when its attempt is aborted, and dropout is seeded by the
microbatch, so a repeated attempt gives the same result. In an attempt that trains other stages this one is
frozen: its parameters get no gradient, and its commit leaves everything as it was, to the bit. In the last
round of a model with BatchNorm parameters get none either, but its commit keeps the statistics.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from distqat.diloco.inner_optimizer import build_inner_optimizer, learning_rate, set_learning_rate
from distqat.diloco.options import DilocoOptions
from distqat.distributed.assembly.training_loss import training_loss
from distqat.distributed.serving.activation_encoder import ActivationEncoder, StageOutputs
from distqat.distributed.serving.attempt_work import (
    MicrobatchGraph,
    MicrobatchWeight,
    PreparedStep,
    StepAttempt,
)
from distqat.distributed.serving.forward_precision import ForwardPrecision
from distqat.errors import BadFrame, SwarmError
from distqat.failpoints import failpoint
from distqat.models import run_stage
from distqat.models.auxiliary_loss import AUXILIARY, take_auxiliary_loss
from distqat.models.teacher import is_teachers, learn_from_stage, split
from distqat.process import notice
from distqat.quant import (
    QuantOptions,
    activate,
    calibrated,
    check_observed,
    drop_weights,
    hold_weights,
    moving_buffers,
    observe_data,
    quant_schedule,
    quantizers,
    reasons,
    settle_weights,
    step_parameter_names,
    weight_step_names,
)
from distqat.tasks.base import Task

logger = logging.getLogger(__name__)

Named = dict[str, Tensor]


class StageReplica:
    """Module and optimizer of one replica; at most one attempt at a time."""

    def __init__(
        self,
        module: nn.Module,
        options: DilocoOptions,
        quant: QuantOptions,
        *,
        stage: str,
        precision: ForwardPrecision,
        task: Task | None,
        activations: str = "auto",
    ) -> None:
        self.module = module.to(precision.device).train()
        self.stage = stage
        self.device = precision.device
        self.precision = precision
        self.task = task  # of the last stage only: it computes the loss
        self.options = options
        self.sending = ActivationEncoder(module, activations if task is None else "fp32", stage=stage)
        self._quant = quant
        self.steps = step_parameter_names(module)
        self.optimizer = self._build_optimizer()
        self.step = 0  # inner steps of this replica's life line, counted on by joiners
        self.measuring = False  # the last round: weights stand, BatchNorm's statistics are measured
        in_float = quant_schedule.float_rounds(options, quant.schedule) > 0
        self.in_float = in_float and self._has_no_steps  # until a round brings quantizers
        self.counting = True  # whether quantizers without a step count what they see
        self.most_steps: int | None = None  # of the schedule, until the next round; None: there are no rounds
        self._waiting = set[str]()  # quantizers to which no values have come
        self._was_in_float = False  # at the last step
        self._shown = 0  # committed microbatches that were for calibration
        self._attempt: StepAttempt | None = None

    # one attempt at a step

    @property
    def calibrating(self) -> bool:
        """Whether its quantizers have to see real data before anything is trained."""
        return not self.in_float and self._has_no_steps

    def begin(self, seed: str, *, frozen: bool = False) -> None:
        """A new attempt starts; `seed` names run, stage, trainer and step, but not the attempt."""
        if self._attempt is not None:
            raise RuntimeError(f"stage {self.stage}: begin of {seed} while {self._attempt.seed} is open")
        self.optimizer.zero_grad(set_to_none=True)
        self._follow_schedule()
        moving = moving_buffers(self.module).items()
        buffers = {name: buffer.clone() for name, buffer in moving if not is_teachers(name)}
        stands = frozen or self.measuring
        held = [p for p in self.module.parameters() if p.requires_grad] if stands else []
        for parameter in held:
            parameter.requires_grad_(False)
        hold_weights(self.module)
        self._attempt = StepAttempt(seed, buffers, self.calibrating, frozen, self.measuring, held)

    def forward(
        self, microbatch: int, tensors: Mapping[str, Tensor], needs_grad: frozenset[str]
    ) -> StageOutputs:
        """Run a microbatch forward and hold its graph; the outputs, and whose gradient is wanted."""
        failpoint("replica.forward")
        outputs = self._run(microbatch, tensors, needs_grad)
        if self.task is not None:  # whoever computes the loss elsewhere has no teacher
            outputs, _ = split(outputs)
        wanted = frozenset(name for name, tensor in outputs.items() if tensor.requires_grad)
        return self.sending.outputs({name: tensor.detach() for name, tensor in outputs.items()}, wanted)

    def auxiliary(self, microbatch: int) -> float:
        """The stage's own loss of a microbatch whose graph is held; 0 where it has none."""
        loss = self._open().graphs[microbatch].auxiliary
        return 0.0 if loss is None else float(loss.detach())

    def backward(
        self, microbatch: int, gradients: Mapping[str, Tensor], weighing: MicrobatchWeight
    ) -> tuple[Named, float]:
        """Gradients of the outputs to gradients of the inputs that need one, and the stage's own loss.

        That loss is weighed as the task's, of which `gradients` are; what is returned is its share.
        """
        failpoint("replica.backward")
        own = self.auxiliary(microbatch) * weighing.share
        graph = self._open().graphs.pop(microbatch)
        roots = [(graph.outputs[name], gradients[name].to(self.device)) for name in gradients]
        factor = weighing.share * weighing.scale
        if graph.auxiliary is not None and factor:
            roots.append((graph.auxiliary, torch.full_like(graph.auxiliary, factor)))
        roots = [(tensor, gradient) for tensor, gradient in roots if tensor.requires_grad]
        if any(tensor.shape != gradient.shape for tensor, gradient in roots):
            raise BadFrame(f"stage {self.stage}: a gradient has another shape than its output")
        if roots:  # none where everything up to here is frozen
            torch.autograd.backward([t for t, _ in roots], [g.to(t.dtype) for t, g in roots])
        return self._finish(graph), own

    def loss(
        self,
        microbatch: int,
        tensors: Mapping[str, Tensor],
        needs_grad: frozenset[str],
        labels: Mapping[str, Tensor],
        weighing: MicrobatchWeight,
    ) -> tuple[Named, dict[str, float]]:
        """Forward, loss and backward of the last stage; the inputs' gradients and the microbatch's scores."""
        assert self.task is not None
        failpoint("replica.loss")
        outputs = self._run(microbatch, tensors, needs_grad)
        graph = self._open().graphs.pop(microbatch)
        labels = {name: tensor.to(self.device) for name, tensor in labels.items()}
        loss, own = training_loss(self.task, outputs, labels, self._quant.distillation)
        if graph.auxiliary is not None:
            loss = loss + graph.auxiliary
            own[AUXILIARY] = float(graph.auxiliary.detach())
        if loss.requires_grad:
            (loss * (weighing.share * weighing.scale)).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            means = {"loss": float(loss), **own}
            scores = {name: mean * weighing.share for name, mean in means.items()}
            scores |= self.task.score(split(outputs)[0], labels)
        return self._finish(graph), scores

    @torch.no_grad()
    def observe(self, microbatch: int, tensors: Mapping[str, Tensor]) -> StageOutputs:
        """Forward without a graph: calibrating quantizers see the data."""
        attempt = self._open()
        self._seed(attempt, microbatch)
        outputs, _ = self._call(tensors)
        attempt.done += 1
        return self.sending.outputs(outputs, ())

    @torch.no_grad()
    def evaluate(self, tensors: Mapping[str, Tensor]) -> StageOutputs:
        """Forward in eval mode, outside any attempt."""
        self.module.eval()
        try:
            return self.sending.outputs(self._call(tensors)[0], ())
        finally:
            self.module.train()
            self._follow_schedule()

    def prepare(self) -> PreparedStep:
        """Count and gradient norms of the open attempt; a norm that is not finite tells of an overflow.

        Raises QuantError when calibration is over with it, or the next round quantizes the stage, and what
        was seen cannot be quantized.
        """
        attempt = self._open()
        over = attempt.calibrates and calibrated(self.module, self._quant, self._shown + attempt.done)
        if over or (self.in_float and self.counting):
            check_observed(self.module)
        settle_weights(self.module)
        norms = torch._foreach_norm(self._gradients()) if self._gradients() else ()
        flat = torch.stack([norm.float() for norm in norms]).cpu() if norms else torch.zeros(0)
        return PreparedStep(self._open().done, flat)

    def commit(self, factor: float, *, skip: bool = False) -> int:
        """Step the optimizer on the summed gradients times `factor` (clipping, unscaling); the step number.

        `skip` closes the attempt without a step: the whole pipeline skips, after an overflow somewhere. So
        does a frozen attempt.
        """
        attempt = self._open()
        settle_weights(self.module)
        if skip or attempt.frozen:
            self._restore(attempt)
        elif self.measuring:
            if not attempt.measures:
                self._restore(attempt)
            self.step += 1
        else:
            if factor != 1.0:
                for gradient in self._gradients():
                    gradient.mul_(factor)
            set_learning_rate(self.optimizer, self._rate)
            failpoint("replica.optimizer")
            self.optimizer.step()
            self.step += 1
        self._close()
        return self.step

    def commit_calibration(self) -> None:
        """Keep what the open attempt observed; once quantizers have seen enough they become active.

        Those to which nothing came but zeros wait for values, and the person at the terminal is told.

        A stage that only passed data on, for another that calibrates, keeps nothing of it: how many such
        batches came depends on timing, and a resumed run must have the bits of one never interrupted.
        """
        attempt = self._open()
        if not attempt.calibrates:
            self._restore(attempt)
        self._close()
        self._shown += attempt.done if attempt.calibrates else 0
        if self.calibrating and calibrated(self.module, self._quant, self._shown):
            learn_from_stage(self.module)
            for sentence in reasons(activate(self.module, wait=True)):
                notice(sentence)

    def abort(self) -> None:
        """Undo everything of the open attempt."""
        if self._attempt is not None:
            self._restore(self._attempt)
            self._close()

    def restart(self, load: Callable[[nn.Module], None]) -> None:
        """Go on from other weights with a fresh inner optimizer, between two steps."""
        load(self.module)
        self.optimizer.state.clear()

    def follow(self, options: DilocoOptions, activations: str) -> None:
        """Go on by what the client says from here on; another type of optimizer begins without moments."""
        self.options = options
        state, before = self.optimizer.state, type(self.optimizer)
        self.optimizer = self._build_optimizer()
        if type(self.optimizer) is before:
            self.optimizer.state = state
        self.sending = ActivationEncoder(
            self.module, activations if self.task is None else "fp32", stage=self.stage
        )

    @property
    def position(self) -> int:
        """Which step of the run's schedule the next one is.

        Who goes on while a round is awaited stays at that round's end: rates do not fall, and steps do not
        freeze, before the round that quantizes.
        """
        return self.step if self.most_steps is None else min(self.step, self.most_steps - 1)

    @property
    def moment(self) -> quant_schedule.ScheduleMoment:
        """What holds at the next step."""
        total, warmup = self.options.total_steps, self._quant.schedule
        return quant_schedule.moment(
            self.position, total, warmup, measuring=self.measuring, in_float=self.in_float
        )

    @property
    def _has_no_steps(self) -> bool:
        return any(quantizer.state == "calibrating" for _, quantizer in quantizers(self.module))

    def moved_before(self) -> None:
        """A stage before this one still trains, so what comes from it is not of its last weights."""
        self._open().measures = False

    # inside

    @property
    def _rate(self) -> float:
        options = self.options
        in_float = quant_schedule.float_rounds(options, self._quant.schedule) * options.inner_steps
        return learning_rate(
            self.position, options.total_steps, options.inner_optim.lr, options, in_float=in_float
        )

    def _build_optimizer(self) -> torch.optim.Optimizer:
        module = self.module
        no_decay = {n for n, p in module.named_parameters() if p.requires_grad and p.ndim <= 1} | self.steps
        return build_inner_optimizer(module, self.options.inner_optim, no_decay, weight_step_names(module))

    def _follow_schedule(self) -> None:
        """Near the end of the run quantizers stand still, and then all weights."""
        quant_schedule.apply(self.module, self.moment)
        observe_data(self.module, on=self.counting)
        waiting = {each.name: each for _, each in quantizers(self.module) if each.state == "waiting"}
        if self._was_in_float and not self.in_float:
            logger.info("stage %s is quantized from here on", self.stage)
            for sentence in reasons(list(waiting.values())):
                notice(sentence)
        for name in sorted(self._waiting - waiting.keys()):
            logger.info("%s: values have come, it has a step now", name)
        self._waiting, self._was_in_float = set(waiting), self.in_float

    def _run(self, microbatch: int, tensors: Mapping[str, Tensor], needs_grad: frozenset[str]) -> Named:
        attempt = self._open()
        inputs = {}
        for name, tensor in tensors.items():
            own = tensor.to(self.device)
            if name in needs_grad and not torch.isfinite(own).all():
                raise SwarmError(f"stage {self.stage}: activation {name!r} holds NaN or infinity")
            inputs[name] = own.detach().requires_grad_(name in needs_grad)
        self._seed(attempt, microbatch)
        outputs, auxiliary = self._call(inputs)
        if attempt.frozen:  # who is not trained has no say
            auxiliary = None
        attempt.graphs[microbatch] = MicrobatchGraph({n: inputs[n] for n in needs_grad}, outputs, auxiliary)
        return outputs

    def _call(self, tensors: Mapping[str, Tensor]) -> tuple[Named, Tensor | None]:
        """What the module makes of its inputs, and its own loss."""
        inputs = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        with self.precision.context():
            outputs = run_stage(self.module, inputs)
        return outputs, take_auxiliary_loss(self.module)

    def _seed(self, attempt: StepAttempt, microbatch: int) -> None:
        digest = hashlib.sha256(f"{attempt.seed}|{microbatch}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _finish(self, graph: MicrobatchGraph) -> Named:
        self._open().done += 1
        return {n: t.grad if t.grad is not None else torch.zeros_like(t) for n, t in graph.inputs.items()}

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.module.parameters() if p.grad is not None]

    def _open(self) -> StepAttempt:
        if self._attempt is None:
            raise RuntimeError(f"stage {self.stage}: no attempt is open")
        return self._attempt

    @torch.no_grad()
    def _restore(self, attempt: StepAttempt) -> None:
        now = dict(self.module.named_buffers())
        for name, before in attempt.buffers.items():
            now[name].copy_(before)

    def _close(self) -> None:
        drop_weights(self.module)
        self.optimizer.zero_grad(set_to_none=True)
        for parameter in self._open().held:
            parameter.requires_grad_(True)
        self._attempt = None
