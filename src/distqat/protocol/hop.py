"""Where a peer is, and one stage of a step's route."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from distqat.protocol.call_schema import FLAT, Name
from distqat.topology.expert import ExpertId
from distqat.topology.snapshot import ServerRecord


@dataclass(frozen=True)
class PeerAddress:
    """Where a peer can be reached: its libp2p identity, its physical host, its multiaddrs."""

    peer: Name
    host: Name = ""  # a peer of the same host is reached over a Unix socket
    maddrs: tuple[Name, ...] = ()


@dataclass(frozen=True)
class Hop:
    """One stage of a step's route: who, and where. ValueError when `uid` names no replica."""

    uid: Name
    address: Annotated[PeerAddress, FLAT]

    def __post_init__(self) -> None:
        ExpertId.parse(self.uid)

    @classmethod
    def of(cls, record: ServerRecord) -> Hop:
        """The hop over a server of the directory."""
        return cls(str(record.expert), PeerAddress(record.peer_id, record.host, record.addresses))
