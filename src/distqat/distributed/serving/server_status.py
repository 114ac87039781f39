"""What a server tells of the slot it holds: to the directory, the client and monitor, its own journal."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

from distqat.config import Config, agreement_digest
from distqat.distributed.serving.committed_state import CommittedState
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.serving.server_process import ServerProcess
from distqat.distributed.serving.slot_state import SlotState
from distqat.distributed.serving.step_tally import StepTally
from distqat.distributed.training.loss_scaler import FP16
from distqat.distributed.training.step_size import BATCH_SIZE
from distqat.process import told_wait
from distqat.protocol.step_attempts import StepId
from distqat.topology.snapshot import ServerRecord

logger = logging.getLogger(__name__)


class ServerStatus:
    """Reads what the parts of a held slot know; changes none of them."""

    def __init__(
        self,
        server: ServerProcess,
        config: Config,
        slot: SlotState,
        replica: StageReplica,
        tally: StepTally,
        committed: Callable[[], CommittedState | None],
    ) -> None:
        """`committed` gives the last committed state, once there is one."""
        peer = server.peer.identity.peer
        self.who = {"uid": slot.uid, "peer": peer, "tenancy": f"{slot.uid}/{slot.granted.epoch}"}
        self._server = server
        self._config = config
        self._slot = slot
        self._replica = replica
        self._tally = tally
        self._committed = committed
        self._announcing = asyncio.Lock()
        self._began = time.monotonic()

    async def announce(self) -> None:
        """Renew our record. Raises DirectoryUnavailable."""
        async with self._announcing:  # of two at once the directory would refuse one
            await self._server.peer.directory.announce(self._record())

    def _record(self) -> ServerRecord:
        peer, granted, committed = self._server.peer, self._slot.granted, self._committed()
        stage = granted.expert.stage
        return ServerRecord(
            peer_id=peer.identity.peer,
            stage=stage,
            index=granted.expert.index,
            epoch=granted.epoch,
            state=self._slot.shown,
            throughput=self._samples_per_s() if self._tally.step_seconds else 0.0,
            step=self._replica.step,
            round=committed.round if committed else 0,
            config_digest=agreement_digest(self._config, stage),
            host=peer.host,
            addresses=peer.maddrs,
            metrics=_limits(self._server.most_samples, self._replica),
        )

    def status(self) -> dict[str, Any]:
        """What the monitor's table shows of this server."""
        compute, traffic = self._server.compute, self._server.peer.transport.traffic
        committed, spent, wait = self._committed(), compute.spent, told_wait()

        def wall(kind: str) -> float:
            return spent[kind].wall_s if kind in spent else 0.0

        return {
            "uid": self.who["uid"],
            "state": self._slot.shown,
            "device": str(self._replica.device),
            "step": self._replica.step,
            "round": committed.round if committed else 0,
            "digest": committed.digest if committed else "",
            "forward_s": wall("forward"),
            "backward_s": wall("backward"),
            "optimizer_s": wall("optimizer"),
            "idle_s": compute.idle_s(),
            "compute_cpu_s": {kind: each.cpu_s for kind, each in spent.items()},
            "queue": compute.queued,
            "bytes_in": traffic.bytes_in,
            "bytes_out": traffic.bytes_out,
            "samples_per_s": self._samples_per_s(),
            "samples": self._tally.samples,
            "waits_for": wait.what if wait else "",
            "waits_since": wait.since if wait else 0.0,
            **self._tally.counts,
        }

    def round_ended(self, record: dict[str, Any]) -> None:
        """A round that this server took part in was committed or discarded."""
        if self._tally.step_seconds:
            logger.info(
                "round %d %s; step time %.3f s (median of the last %d), step %d",
                record["round"],
                "committed" if record["committed"] else "discarded",
                self._tally.median_s,
                len(self._tally.step_seconds),
                self._replica.step,
            )
        figures = {f"server_{k}": v for k, v in self.status().items() if isinstance(v, int | float)}
        self._server.sink.write({**record, **self.who, **figures})

    def journal(self, id: StepId, outcome: str) -> None:
        """A line on disk for every applied step, before its trainer hears of it: it outlives a SIGKILL."""
        self.event(outcome, id=list(astuple(id)))

    def event(self, event: str, **fields: Any) -> None:
        """A line in the journal."""
        self._server.sink.write({"event": event, **self.who, **fields})

    def _samples_per_s(self) -> float:
        return self._tally.samples / max(time.monotonic() - self._began, 1e-6)


def _limits(most_samples: int | None, replica: StageReplica) -> dict[str, float]:
    """What a trainer must know of this server before it sends a batch."""
    bound = {} if most_samples is None else {BATCH_SIZE: float(most_samples)}
    return {**bound, **({FP16: 1.0} if replica.precision.scaled else {})}
