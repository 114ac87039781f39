"""What a server tells of the slot it holds: to the directory, the client and monitor, its own journal."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import astuple
from statistics import median
from typing import Any

from distqat.config import Config, agreement_digest
from distqat.distributed.network.role_peer import RolePeer
from distqat.distributed.serving.committed_state import CommittedState
from distqat.distributed.serving.compute_thread import ComputeThread
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.serving.slot_request import GrantedSlot
from distqat.distributed.serving.step_service import StepService
from distqat.distributed.training.loss_scaler import FP16
from distqat.distributed.training.step_size import BATCH_SIZE
from distqat.metrics import Sink
from distqat.process import told_wait
from distqat.protocol.step_attempts import StepId
from distqat.topology.snapshot import ServerRecord, ServerState

logger = logging.getLogger(__name__)


class ServerStatus:
    """Reads what the parts of a tenancy know; changes none of them."""

    def __init__(
        self,
        config: Config,
        peer: RolePeer,
        slot: GrantedSlot,
        replica: StageReplica,
        steps: StepService,
        compute: ComputeThread,
        where: Callable[[], tuple[ServerState, CommittedState | None]],
    ) -> None:
        """`where` says the state that is shown, and the last committed state once there is one."""
        self.sink: Sink
        self.slot = slot
        self.most_samples: int | None = None
        """Samples per step that this server takes at most; None: as many as the client says."""
        uid = str(slot.expert)
        self.who = {"uid": uid, "peer": peer.identity.peer, "tenancy": f"{uid}/{slot.epoch}"}
        self._config = config
        self._peer = peer
        self._replica = replica
        self._steps = steps
        self._compute = compute
        self._where = where
        self._announcing = asyncio.Lock()
        self._began = time.monotonic()

    async def announce(self) -> None:
        """Renew our record. Raises DirectoryUnavailable."""
        async with self._announcing:  # of two at once the directory would refuse one
            await self._peer.directory.announce(self._record())

    def _record(self) -> ServerRecord:
        state, shared = self._where()
        rate = self._samples_per_s() if self._steps.step_seconds else 0.0
        return ServerRecord(
            peer_id=self._peer.identity.peer,
            stage=self.slot.expert.stage,
            index=self.slot.expert.index,
            epoch=self.slot.epoch,
            state=state,
            throughput=rate,
            step=self._replica.step,
            round=shared.round if shared else 0,
            config_digest=agreement_digest(self._config, self.slot.expert.stage),
            host=self._peer.host,
            addresses=self._peer.maddrs,
            metrics=self._limits(),
        )

    def _limits(self) -> dict[str, float]:
        """What a trainer must know of this server before it sends a batch."""
        bound = {} if self.most_samples is None else {BATCH_SIZE: float(self.most_samples)}
        return {**bound, **({FP16: 1.0} if self._replica.precision.scaled else {})}

    def status(self) -> dict[str, Any]:
        """What the monitor's table shows of this server."""
        state, shared = self._where()
        spent, traffic = self._compute.spent, self._peer.transport.traffic
        wait = told_wait()

        def wall(kind: str) -> float:
            return spent[kind].wall_s if kind in spent else 0.0

        return {
            "uid": self.who["uid"],
            "state": state,
            "device": str(self._replica.device),
            "step": self._replica.step,
            "round": shared.round if shared else 0,
            "digest": shared.digest if shared else "",
            "forward_s": wall("forward"),
            "backward_s": wall("backward"),
            "optimizer_s": wall("optimizer"),
            "idle_s": self._compute.idle_s(),
            "compute_cpu_s": {kind: each.cpu_s for kind, each in spent.items()},
            "queue": self._compute.queued,
            "bytes_in": traffic.bytes_in,
            "bytes_out": traffic.bytes_out,
            "samples_per_s": self._samples_per_s(),
            "samples": self._steps.samples,
            "waits_for": wait.what if wait else "",
            "waits_since": wait.since if wait else 0.0,
            **self._steps.counts,
        }

    def round_ended(self, record: dict[str, Any]) -> None:
        """A round that this server took part in was committed or discarded."""
        seconds = self._steps.step_seconds
        if seconds:
            logger.info(
                "round %d %s; step time %.3f s (median of the last %d), step %d",
                record["round"],
                "committed" if record["committed"] else "discarded",
                median(seconds),
                len(seconds),
                self._replica.step,
            )
        figures = {f"server_{k}": v for k, v in self.status().items() if isinstance(v, int | float)}
        self.sink.write({**record, **self.who, **figures})

    def journal(self, id: StepId, outcome: str) -> None:
        """A line on disk for every applied step, before its trainer hears of it: it outlives a SIGKILL."""
        self.event(outcome, id=list(astuple(id)))

    def event(self, event: str, **fields: Any) -> None:
        """A line in the journal."""
        self.sink.write({"event": event, **self.who, **fields})

    def _samples_per_s(self) -> float:
        return self._steps.samples / max(time.monotonic() - self._began, 1e-6)
