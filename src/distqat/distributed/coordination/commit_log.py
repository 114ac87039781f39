"""The one place where outcomes are decided: a small durable log of compare-and-set entries. docs/protocol.md.

One JSON object per line, synced before anybody hears of it. The first proposal for a round wins. A line cut
short by a power cut was never told to anybody and is dropped at the next start.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqat.errors import CheckpointError, RoleError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlotGrant:
    """A slot given to a peer; a higher epoch of the same slot is a later holder."""

    uid: str
    peer: str
    epoch: int


class CommitLog:
    """The log of one run."""

    def __init__(self, path: Path, run: str, *, resume: bool = False) -> None:
        """What stands at `path` is continued; a finished run only with `resume`, else another one begins."""
        self._path = path
        self._rounds: dict[tuple[str, int], str] = {}
        self._grants: dict[str, SlotGrant] = {}  # the last of each slot
        self.generation = int(time.time())
        """The line of history that rounds belong to: Unix time at its begin, so later means newer."""
        self.first_generation = self.generation
        self.finished = False
        self.settings: dict[str, Any] = {}
        """What the run was last started with, as `started` was told; empty for a new run."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read(run)
        self.oldest = 0
        """States of older generations belong to other runs; 0: nothing is known of any."""
        if self.finished and not resume:
            self._start_anew()
            self.oldest = self.first_generation
        self.finished = False
        self.continued = bool(self._rounds)
        """Whether rounds were committed here before this start."""
        if self.continued:
            self.oldest = self.first_generation
        self._file = path.open("a", encoding="utf-8")
        if self._file.tell() == 0:
            self._append({"kind": "run", "run": run, "generation": self.generation})

    def newest_round(self, stage: str) -> tuple[int, str] | None:
        """The last committed round of a stage and its digest; None before round 0."""
        rounds = [number for name, number in self._rounds if name == stage]
        return (max(rounds), self._rounds[stage, max(rounds)]) if rounds else None

    def digest(self, stage: str, round: int) -> str | None:
        """What round `round` ended with."""
        return self._rounds.get((stage, round))

    def commit_round(self, stage: str, round: int, digest: str) -> str:
        """Propose the outcome of a round; the digest that stands, ours or that of who came first."""
        standing = self._rounds.get((stage, round))
        if standing is not None:
            return standing
        newest = self.newest_round(stage)
        expected = 0 if newest is None else newest[0] + 1
        if round != expected:
            raise ValueError(f"stage {stage}: round {round} cannot be logged, the next is {expected}")
        entry = {"generation": self.generation, "stage": stage, "round": round, "digest": digest}
        self._append({"kind": "round", **entry})
        self._rounds[stage, round] = digest
        return digest

    def started(self, settings: dict[str, Any]) -> None:
        """Note what the run is started with this time."""
        if settings != self.settings:
            self._append({"kind": "settings", "settings": settings})
            self.settings = settings

    def new_generation(self) -> int:
        """The number of a line of history that begins now."""
        self.generation = max(int(time.time()), self.generation + 1)
        return self.generation

    def restart_stage(self, stage: str, round: int, digest: str, generation: int | None = None) -> int:
        """Nobody holds a stage any more: go on from a state on disk, in a new generation; its number."""
        self.generation = self.new_generation() if generation is None else generation
        entry = {"generation": self.generation, "stage": stage, "round": round, "digest": digest}
        self._append({"kind": "restart", **entry})
        self._restart(stage, round, digest)
        return self.generation

    def _restart(self, stage: str, round: int, digest: str) -> None:
        later = [key for key in self._rounds if key[0] == stage and key[1] > round]
        for key in later:
            del self._rounds[key]
        self._rounds[stage, round] = digest

    def grant(self, uid: str, peer: str) -> SlotGrant:
        """Give a slot to a peer under a new epoch."""
        last = self._grants.get(uid)
        grant = SlotGrant(uid, peer, last.epoch + 1 if last else 1)
        self._append({"kind": "grant", "uid": uid, "peer": peer, "epoch": grant.epoch})
        self._grants[uid] = grant
        return grant

    def last_peer(self, uid: str) -> str | None:
        """Whom a slot was given to last; None if it never was."""
        last = self._grants.get(uid)
        return last.peer if last else None

    def finish(self) -> None:
        """The run is over."""
        if not self.finished:
            self._append({"kind": "finished"})
            self.finished = True

    def close(self) -> None:
        """Closes the file; every entry is on disk already."""
        self._file.close()

    def _start_anew(self) -> None:
        """A finished run stays finished; who starts again in its folder starts another."""
        kept = self._path.with_name(f"{self._path.stem}.{int(self._path.stat().st_mtime)}{self._path.suffix}")
        self._path.rename(kept)
        logger.info("the run in %s is finished; this is a new one, its log is kept as %s", self._path, kept)
        self._rounds, self._grants, self.finished, self.settings = {}, {}, False, {}
        self.generation = self.first_generation = int(time.time())

    def _append(self, entry: dict[str, Any]) -> None:
        """Write a line before anybody hears of it. Raises RoleError."""
        try:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RoleError(
                f"{self._path} cannot be written ({error.strerror}); no slot is granted and no round is "
                "committed without it: make room, and start the client again"
            ) from error

    def _read(self, run: str) -> None:
        text = self._path.read_text(encoding="utf-8")
        whole, _, torn = text.rpartition("\n")
        if torn:
            logger.warning("%s: dropped its last line, which was cut short", self._path)
            self._path.write_text(whole + "\n" if whole else "", encoding="utf-8")
        for number, line in enumerate(filter(None, whole.split("\n")), start=1):
            try:
                self._take(json.loads(line), run)
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{self._path}:{number} is not an entry of a commit log ({error}); "
                    "move the file away to start a new run"
                ) from error

    def _take(self, entry: dict[str, Any], run: str) -> None:
        kind = entry["kind"]
        if kind == "run":
            if entry["run"] != run:
                raise ValueError(f"it belongs to run {entry['run']!r}, this is {run!r}")
            self.generation = self.first_generation = int(entry["generation"])
        if kind == "round":
            self._rounds[entry["stage"], int(entry["round"])] = entry["digest"]
            self.finished = False  # it was resumed after its end, for more rounds
        elif kind == "restart":
            self.finished = False
            self.generation = int(entry["generation"])
            self._restart(entry["stage"], int(entry["round"]), entry["digest"])
        elif kind == "grant":
            uid = entry["uid"]
            self._grants[uid] = SlotGrant(uid, entry["peer"], int(entry["epoch"]))
        elif kind == "settings":
            self.settings = dict(entry["settings"])
        elif kind == "finished":
            self.finished = True
