"""Checkpoints: the state of every stage at a committed round, on this host's disk."""

from __future__ import annotations

from distqat.checkpoint.assembled import Assembled, assemble, write_model
from distqat.checkpoint.report import ShardReport, verify
from distqat.checkpoint.rounds import RoundFolder
from distqat.checkpoint.shard import LoadedShard, ShardState, Skipped
from distqat.checkpoint.store import CheckpointStore, Search

__all__ = [
    "Assembled",
    "CheckpointStore",
    "LoadedShard",
    "RoundFolder",
    "Search",
    "ShardReport",
    "ShardState",
    "Skipped",
    "assemble",
    "verify",
    "write_model",
]
