"""Checkpoints: the state of every stage at a committed round, on this host's disk."""

from __future__ import annotations

from distqat.checkpoint.assembled_model import AssembledModel, assemble, write_model
from distqat.checkpoint.checkpoint_steps import CheckpointMark, newest_common
from distqat.checkpoint.integrity_report import ShardReport, verify
from distqat.checkpoint.round_index import RoundFolder
from distqat.checkpoint.shard import LoadedShard, ShardState, SkippedShard
from distqat.checkpoint.store import CheckpointStore, NewestShard
from distqat.checkpoint.trainer_part import TrainerPart, read_trainer_parts, write_trainer_part

__all__ = [
    "AssembledModel",
    "CheckpointMark",
    "CheckpointStore",
    "LoadedShard",
    "NewestShard",
    "RoundFolder",
    "ShardReport",
    "ShardState",
    "SkippedShard",
    "TrainerPart",
    "assemble",
    "newest_common",
    "read_trainer_parts",
    "verify",
    "write_model",
    "write_trainer_part",
]
