"""What one replica alone has at a checkpoint step: weights beyond the anchor, inner optimizer, counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distqat.distributed.serving.committed_state import ReplicaWeights
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.transfer.snapshot_exchange import inner_state, load_inner_state
from distqat.errors import CheckpointError

Named = dict[str, Tensor]
_LOCAL = ("weight", "step", "buffer")


@dataclass(frozen=True)
class ReplicaProgress:
    """Inner steps and samples since the last committed or discarded round: when the next round is due."""

    since: int = 0
    samples: int = 0


def moments(replica: StageReplica) -> Named:
    """The part that a replica goes on with after a restored round. Runs on the compute thread."""
    return {f"inner/{name}": tensor for name, tensor in inner_state(replica).items()}


def own_state(replica: StageReplica, progress: ReplicaProgress) -> Named:
    """Everything that, with the committed round, makes the replica of this step. On the compute thread."""
    local = ReplicaWeights.of(replica.module)
    tensors = moments(replica)
    for part, named in zip(_LOCAL, (local.weights, local.steps, local.buffers), strict=True):
        tensors.update({f"{part}/{name}": tensor for name, tensor in named.items()})
    counters = {"step": replica.step, "since": progress.since, "samples": progress.samples}
    tensors.update({f"counter/{name}": torch.tensor(value) for name, value in counters.items()})
    return tensors


def load_own_state(replica: StageReplica, tensors: Mapping[str, Tensor]) -> ReplicaProgress:
    """Take over what `own_state` gave, or what `moments` gave; on the compute thread.

    Raises CheckpointError when a tensor belongs to nothing here.
    """
    parts: dict[str, Named] = {part: {} for part in (*_LOCAL, "inner", "counter")}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        if part not in parts:
            raise CheckpointError(f"the private state of a replica holds {key!r}")
        parts[part][name] = tensor
    if parts["weight"]:
        ReplicaWeights(*(parts[part] for part in _LOCAL)).load(replica.module)
    load_inner_state(replica, parts["inner"])
    counters = {name: int(tensor) for name, tensor in parts["counter"].items()}
    replica.step = counters.get("step", replica.step)
    return ReplicaProgress(counters.get("since", 0), counters.get("samples", 0))
