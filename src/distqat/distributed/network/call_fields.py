"""The calls between roles: names, and how ids and addresses stand in a message's fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from distqat.errors import BadFrame
from distqat.protocol.step_attempts import StepId
from distqat.swarm.peer_link import PeerAddress
from distqat.topology.expert import ExpertId
from distqat.topology.snapshot import ServerRecord

T = TypeVar("T")


@dataclass(frozen=True)
class Hop:
    """One stage of a step's route: who, and where."""

    uid: str
    address: PeerAddress

    @classmethod
    def of(cls, record: ServerRecord) -> Hop:
        return cls(str(record.expert), PeerAddress(record.peer_id, record.host, record.addresses))

    def fields(self) -> dict[str, Any]:
        address = self.address
        return {"uid": self.uid, "peer": address.peer, "host": address.host, "maddrs": list(address.maddrs)}

    @classmethod
    def parse(cls, fields: Any) -> Hop:
        """Raises BadFrame."""
        uid = take(fields, "uid", str)
        try:
            ExpertId.parse(uid)
        except ValueError as error:
            raise BadFrame(str(error)) from error
        maddrs = take(fields, "maddrs", list)
        address = PeerAddress(take(fields, "peer", str), take(fields, "host", str), tuple(map(str, maddrs)))
        return cls(uid, address)


def take(fields: Any, key: str, kind: type[T]) -> T:
    """A field of the kind it must have; an int serves for a float. Raises BadFrame."""
    value = fields.get(key) if isinstance(fields, Mapping) else None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return cast(T, float(value))
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadFrame(f"field {key!r} must be {kind.__name__}, got {value!r:.80}")
    return value


def step_fields(id: StepId) -> dict[str, Any]:
    """A step id as fields."""
    return {"trainer": id.trainer, "life": id.incarnation, "step": id.step, "attempt": id.attempt}


def parse_step(fields: Mapping[str, Any]) -> StepId:
    """Raises BadFrame."""
    step = StepId(
        take(fields, "trainer", str),
        take(fields, "life", int),
        take(fields, "step", int),
        take(fields, "attempt", int),
    )
    if min(step.incarnation, step.step, step.attempt) < 0 or len(step.trainer) > 100:
        raise BadFrame(f"{step} is no step id")
    return step
