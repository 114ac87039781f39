"""Distillation: a float copy of a stage, its teacher, which runs beside the stage while that trains.

    Hinton et al., arXiv:1503.02531

What the teacher gives goes to the next stage with the stage's own outputs, under the same names with
`teacher.` in front, and the teacher there takes it. It runs in eval mode and without a graph: nothing wants
its gradient.

Its weights are buffers of the stage that no state dict holds. So a committed state, and with it a snapshot
and a checkpoint, carries them; a saved model does not. Until it is ready it is not asked, and gives nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distqat.errors import ModelError
from distqat.models.auxiliary_loss import AUXILIARY, take_auxiliary_loss
from distqat.models.registry import named_tensors

TEACHER = "teacher"
"""The child of a stage that holds its teacher, and the first word of what it gives."""
_GIVEN = f"{TEACHER}."
_READY = f"{TEACHER}.ready"
_WEIGHTS = "stage/"  # in front of the names of weights, in which `/` stands for a dot

Named = dict[str, Tensor]


class Teacher(nn.Module):
    """The teacher of one stage."""

    ready: Tensor
    _stage: nn.Module

    def __init__(self, stage: nn.Module, *, first: bool, hidden: float = 0.0) -> None:
        """`stage`: a float copy; `first`: it is the first of the pipeline, and takes the batch itself.

        `hidden`: weight of the mean squared error between what the stage gives and what its teacher does, an
        auxiliary loss of the stage (as in TinyBERT, arXiv:1909.10351).
        """
        super().__init__()
        # Not a child: who looks for the stage's layers, norms and parameters must not find these.
        self.__dict__["_stage"] = stage.eval().requires_grad_(False)
        self.first = first
        self.hidden = hidden
        self.register_buffer("ready", torch.zeros((), dtype=torch.uint8), persistent=False)
        self._share()

    def beside(self, inputs: Mapping[str, Tensor], outputs: Named, stage: nn.Module) -> Named:
        """What goes on beside the `outputs` of `stage`, of whose inputs some may be of the teacher before.

        Nothing where this teacher or that one is not ready.
        """
        own, taught = split(inputs)
        given = own if self.first else taught
        if not given or not int(self.ready):
            return {}
        with torch.no_grad():
            found = named_tensors(self._stage(*given.values()))
        take_auxiliary_loss(self._stage)
        if self.hidden:
            apart = [F.mse_loss(outputs[name].float(), tensor.float()) for name, tensor in found.items()]
            loss, already = self.hidden * torch.stack(apart).sum(), take_auxiliary_loss(stage)
            setattr(stage, AUXILIARY, loss if already is None else already + loss)
        return {f"{_GIVEN}{name}": tensor for name, tensor in found.items()}

    @torch.no_grad()
    def learn(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the tensors of a float stage over, by its names, and be ready.

        What is not there stays: a buffer that no state dict holds is a constant.
        """
        for name, own in self._tensors().items():
            if name in tensors:
                own.copy_(tensors[name])
        self.ready.fill_(1)

    @property
    def state(self) -> Named:
        """The state dict of the float stage."""
        return self._stage.state_dict()

    def _tensors(self) -> Named:
        return {**dict(self._stage.named_parameters()), **dict(self._stage.named_buffers())}

    def _share(self) -> None:
        """The buffers are the memory of the weights."""
        for name, tensor in self._tensors().items():
            self.register_buffer(_WEIGHTS + name.replace(".", "/"), tensor.detach(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Teacher:
        """To another device; `ready` stays on the CPU, where reading it waits for nothing."""
        self._stage._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._share()
        return self


def float_copy(stage: nn.Module) -> nn.Module:
    """For a teacher, of a stage that is not quantized yet."""
    return copy.deepcopy(stage)


def add_teacher(stage: nn.Module, teacher: Teacher) -> None:
    """Put a teacher beside a stage. Raises ModelError for one with an attribute of that name."""
    if hasattr(stage, TEACHER):
        raise ModelError(f"{type(stage).__name__} has an attribute {TEACHER!r}; distillation needs that name")
    stage.add_module(TEACHER, teacher)


def teacher_of(stage: nn.Module) -> Teacher | None:
    """The teacher of a stage; None: it has none."""
    found = stage._modules.get(TEACHER)
    return found if isinstance(found, Teacher) else None


def learn_from_stage(stage: nn.Module) -> None:
    """A stage whose weights are still in float becomes what its teacher is, if that is not ready yet."""
    teacher = teacher_of(stage)
    if teacher is not None and not int(teacher.ready):
        teacher.learn({**dict(stage.named_parameters()), **dict(stage.named_buffers())})


def teacher_from(weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Named:
    """`buffers` of a stage's state with a teacher that is its float `weights` (and buffers), ready.

    As they are where the stage has no teacher, or one that is ready.
    """
    if not _waits(buffers):
        return dict(buffers)
    prefix = f"{_GIVEN}{_WEIGHTS}"
    named = {key: key.removeprefix(prefix).replace("/", ".") for key in buffers if key.startswith(prefix)}
    found = {key: weights[name] if name in weights else buffers[name] for key, name in named.items()}
    return {**buffers, **found, _READY: torch.ones_like(buffers[_READY])}


def _waits(buffers: Mapping[str, Tensor]) -> bool:
    return _READY in buffers and not int(buffers[_READY])


def is_teachers(name: str) -> bool:
    """Whether a buffer of a stage's state is its teacher's: constant, so never averaged or undone."""
    return name == _READY or name.startswith(f"{_GIVEN}{_WEIGHTS}")


def split(named: Mapping[str, Tensor]) -> tuple[Named, Named]:
    """What stages hand on: the stage's own tensors, and its teacher's under the same names."""
    own = {name: tensor for name, tensor in named.items() if not name.startswith(_GIVEN)}
    taught = {name.removeprefix(_GIVEN): t for name, t in named.items() if name.startswith(_GIVEN)}
    return own, taught
