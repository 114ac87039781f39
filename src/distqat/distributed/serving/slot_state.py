"""The slot that a server holds: its grant, its state, its lease. They are kept here and nowhere else."""

from __future__ import annotations

from dataclasses import replace

from distqat.distributed.serving.serving_lease import ServingLease
from distqat.errors import Refused
from distqat.protocol.calls.slot_calls import GrantedSlot
from distqat.topology.snapshot import ServerState


class SlotState:
    """One slot as its server sees it; `granted` changes when the client grants the same slot anew."""

    def __init__(self, granted: GrantedSlot) -> None:
        self.granted = granted
        self.state: ServerState = "joining"
        self.lease = ServingLease()

    @property
    def uid(self) -> str:
        """The name of the replica, as in the directory."""
        return str(self.granted.expert)

    @property
    def generation(self) -> int:
        """How often the run has gone on from a checkpoint, as far as this server has heard."""
        return self.granted.generation

    @generation.setter
    def generation(self, generation: int) -> None:
        self.granted = replace(self.granted, generation=generation)

    @property
    def shown(self) -> ServerState:
        """The state as others see it: `unknown` while a server that takes steps has lost its lease."""
        return "unknown" if self._takes_steps and self.lease.over else self.state

    @property
    def _takes_steps(self) -> bool:
        return self.state in ("calibrating", "serving")

    def admit(self) -> None:
        """Raises Refused unless a step may begin now."""
        if self.shown == "unknown":
            raise Refused(
                f"{self.uid} has not heard from the client for {self.lease.silent_s:.0f} s and does not "
                "know what it missed; it takes no steps until the client answers"
            )
        if not self._takes_steps:
            raise Refused(f"{self.uid} is {self.state} and takes no steps")
