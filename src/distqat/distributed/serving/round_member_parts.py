"""What a member of the rounds works with."""

from __future__ import annotations

from dataclasses import dataclass

from distqat.diloco.options import DilocoOptions
from distqat.distributed.network.coordinator_link import CoordinatorLink
from distqat.distributed.serving.compute_thread import ComputeThread
from distqat.distributed.serving.round_arithmetic import RoundArithmetic
from distqat.distributed.serving.step_service import StepService
from distqat.distributed.transfer.tied_weight_exchange import TiedWeightExchange
from distqat.swarm.transport import Transport


@dataclass
class MemberParts:
    """The parts of one replica. `options` change when a client that was started again says so."""

    options: DilocoOptions
    rounds: RoundArithmetic
    steps: StepService
    compute: ComputeThread
    transport: Transport
    coordinator: CoordinatorLink
    twin: TiedWeightExchange | None = None

    def follow(self, options: DilocoOptions) -> None:
        """Go on by other options."""
        self.options = self.rounds.options = options
        if self.twin is not None:
            self.twin.timeout_s = options.averaging_timeout
