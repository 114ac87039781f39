"""What a server process has over all the slots that it holds, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distqat.distributed.network.coordinator_link import CoordinatorLink
from distqat.distributed.network.role_peer import RolePeer
from distqat.distributed.serving.compute_thread import ComputeThread
from distqat.metrics import Sink


@dataclass(frozen=True)
class ServerProcess:
    """Connections, device and records of one server process."""

    peer: RolePeer
    coordinator: CoordinatorLink
    compute: ComputeThread
    device: torch.device
    sink: Sink
    most_samples: int | None
    """Samples per step that this server takes at most; None: as many as the client says."""
