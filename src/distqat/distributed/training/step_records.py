"""What a trainer writes of its steps, for the ledger and for people, and what it tells of whole batches."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

from distqat.distributed.training.batch_phases import BatchTally, PhaseStep
from distqat.distributed.training.loss_jumps import LossWatch, phase_of, tell
from distqat.distributed.training.step_driver import StepResult
from distqat.errors import SwarmError
from distqat.metrics import Sink
from distqat.protocol.hop import Hop
from distqat.protocol.step_attempts import StepId
from distqat.swarm.transport import Transport


@dataclass
class SamplesPerSecond:
    """Samples per second over the last batches."""

    window: float = 0.9
    value: float = 0.0

    def add(self, samples: int, seconds: float) -> float:
        """Takes one batch in, and gives the rate in samples/s."""
        rate = samples / max(seconds, 1e-9)
        self.value = rate if self.value == 0 else self.window * self.value + (1 - self.window) * rate
        return self.value


class StepRecords:
    """The records of one trainer: one for every attempt, with its id, its route and its end."""

    def __init__(self, sink: Sink, pipeline: int, transport: Transport) -> None:
        self.aborts = 0
        self._sink = sink
        self._pipeline = pipeline
        self._transport = transport
        self._speed = SamplesPerSecond()
        self._tally = BatchTally()
        self._watch = LossWatch()
        self._phase = phase_of(())  # of the next batch

    def aborted(self, error: SwarmError, hops: list[Hop], id: StepId) -> None:
        """An attempt that must have left no trace anywhere."""
        self.aborts += 1
        told = {"at": error.at, "code": error.code, "reason": str(error)[:200]}
        self._sink.write({"event": "abort", "pipeline": self._pipeline, **told, **_way(id, hops)})

    def committed(
        self, planned: PhaseStep, result: StepResult, hops: list[Hop], id: StepId, taken: tuple[int, float]
    ) -> dict[str, Any]:
        """A committed step; `taken`: the number of its batch, and seconds. What the client is told of a batch
        whose last step this is: with phases its loss is the sum of theirs.
        """
        number, seconds = taken
        if planned.number == 0:
            self._tally = BatchTally()
        tally = self._tally
        tally.add(planned, result.loss, seconds)
        traffic = self._transport.traffic
        record: dict[str, Any] = {
            "pipeline": self._pipeline,
            "step": number,
            "loss": result.loss,
            "sps": self._speed.add(tally.samples, tally.seconds) if planned.last else self._speed.value,
            "samples": planned.samples,
            "seconds": seconds,
            "skipped": result.skipped,
            "lost": list(result.lost),
            "retries": self.aborts,
            **_way(id, hops),
            "bytes_in": traffic.bytes_in,
            "bytes_out": traffic.bytes_out,
        }
        if "tokens" in result.scores:
            record["tokens_per_s"] = record["sps"] * result.scores["tokens"] / max(result.samples, 1)
        phase = {"phase": planned.name, "frozen": planned.uids(hops)} if planned.name else {}
        self._sink.write({"event": "step", **record, **phase, **result.scores})
        told = {**record, **tally.fields()}
        if planned.last:
            self._follow(float(told["loss"]), number, result)
        return told

    def _follow(self, loss: float, number: int, result: StepResult) -> None:
        """Say when a change of phase made the loss jump."""
        tell(self._watch.add(loss, self._phase, number), self._sink, self._pipeline)
        self._phase = phase_of(result.standing)


def _way(id: StepId, hops: list[Hop]) -> dict[str, Any]:
    """An attempt's id and route in a record; peers tell the holders of one slot apart."""
    route, peers = [hop.uid for hop in hops], [hop.address.peer for hop in hops]
    return {"id": list(astuple(id)), "route": route, "peers": peers}
