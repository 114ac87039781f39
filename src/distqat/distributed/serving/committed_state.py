"""What all replicas of a stage hold to the bit after a round, and the weights of one replica beside it.

Committed are the anchor, the outer optimizer's state, the quantizers' steps and the buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from distqat.diloco import outer_optimizer
from distqat.diloco.outer_optimizer import OuterState
from distqat.diloco.tensor_digest import state_digest
from distqat.errors import BadContribution
from distqat.models.teacher import is_teachers
from distqat.quant import step_parameter_names

Named = dict[str, Tensor]
_PARTS = ("anchor", "outer", "step", "buffer")


@dataclass(frozen=True)
class CommittedState:
    """The committed state of round `round`; its tensors are never changed in place."""

    round: int
    anchor: Named
    outer: OuterState
    steps: Named
    buffers: Named
    counters: dict[str, int] = field(default_factory=dict)  # inner steps of the donor; not part of the digest
    refused: frozenset[int] = frozenset()  # which contributions its round left out; not part of the digest

    def tensors(self) -> Named:
        """One flat dict: `anchor/...`, `outer/...`, `step/...`, `buffer/...`."""
        parts = (self.anchor, self.outer.tensors(), self.steps, self.buffers)
        return {
            f"{part}/{name}": t for part, own in zip(_PARTS, parts, strict=True) for name, t in own.items()
        }

    @classmethod
    def from_tensors(
        cls, round: int, tensors: Mapping[str, Tensor], counters: Mapping[str, int]
    ) -> CommittedState:
        """What `tensors()` wrote, as its own memory."""
        parts: dict[str, Named] = {part: {} for part in _PARTS}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            if part not in parts:
                raise BadContribution(f"a snapshot holds {key!r}, which is not a part of a stage's state")
            parts[part][name] = tensor.clone()
        state = OuterState.from_tensors(parts["outer"])
        return cls(round, parts["anchor"], state, parts["step"], parts["buffer"], dict(counters))

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that replicas must have in common."""
        return state_digest(self.tensors())


@dataclass(frozen=True)
class ReplicaWeights:
    """The weights, steps and buffers of one replica at one moment, on the CPU.

    Its teacher, which stands still, is in the committed state alone.
    """

    weights: Named
    steps: Named
    buffers: Named

    @classmethod
    @torch.no_grad()
    def of(cls, module: nn.Module) -> ReplicaWeights:
        """A copy."""
        names = step_parameter_names(module)
        copies = {name: _copy(param) for name, param in module.named_parameters()}
        return cls(
            weights={name: t for name, t in copies.items() if name not in names},
            steps={name: t for name, t in copies.items() if name in names},
            buffers={name: _copy(b) for name, b in module.named_buffers() if not is_teachers(name)},
        )

    @torch.no_grad()
    def load(self, module: nn.Module) -> None:
        """Write into a module."""
        for name, target in (*module.named_parameters(), *module.named_buffers()):
            source = self.weights.get(name, self.steps.get(name, self.buffers.get(name)))
            if source is None and is_teachers(name):
                continue
            if source is None or source.shape != target.shape:
                raise BadContribution(f"the state for {name!r} is missing or of another shape")
            target.copy_(source)

    def finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        groups = (self.weights, self.steps, self.buffers)
        return all(bool(torch.isfinite(t).all()) for g in groups for t in g.values() if t.is_floating_point())


def initial(module: nn.Module) -> CommittedState:
    """Round 0: the founder's weights."""
    local = ReplicaWeights.of(module)
    teacher = {name: _copy(buffer) for name, buffer in module.named_buffers() if is_teachers(name)}
    outer, buffers = outer_optimizer.init(local.weights), {**local.buffers, **teacher}
    return CommittedState(0, local.weights, outer, local.steps, buffers)


def as_local(shared: CommittedState) -> ReplicaWeights:
    """The weights that a replica has that starts from the committed state."""
    return ReplicaWeights(shared.anchor, shared.steps, shared.buffers)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
