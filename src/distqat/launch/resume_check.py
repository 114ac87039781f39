"""Whether --resume has something to go on from; if not, what lies there instead."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distqat.config import Config, structure, structure_digest
from distqat.errors import ConfigError

if TYPE_CHECKING:
    from distqat.checkpoint import RoundFolder

COMMIT_LOG = "commit_log.jsonl"


def check_resumable(config: Config) -> None:
    """Raises ConfigError unless every stage has a round of this run, or the run was stopped before one.

    Else servers would begin anew in silence.
    """
    reached = _committed(Path(config.log_dir) / COMMIT_LOG, config.experiment_prefix)
    if reached == 0:
        return
    from distqat.checkpoint.round_index import list_rounds

    rounds = list_rounds(config.checkpoint_dir)
    lacking = [stage for stage in config.stages if not _usable(config, rounds, stage)]
    if lacking:
        raise ConfigError(_refusal(config, rounds, lacking, reached))


def _committed(log: Path, run: str) -> int | None:
    """The last round in the log; None: there is no log. Raises ConfigError for the log of another run."""
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    newest = 0
    for line in lines:
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:  # cut short by a power cut; the client drops it too
            continue
        if entry.get("kind") == "run" and entry.get("run") != run:
            raise ConfigError(
                f"there is nothing to resume: {log} is of run {entry.get('run')!r}, and this is {run!r}; "
                "give the --experiment-prefix and --log-dir of the run that is meant"
            )
        if entry.get("kind") in ("round", "restart"):
            newest = max(newest, int(entry.get("round", 0)))
    return newest


def _usable(config: Config, rounds: Sequence[RoundFolder], stage: str) -> bool:
    run, digest = config.experiment_prefix, structure_digest(config, stage)
    found = (entry.manifests[stage] for entry in rounds if stage in entry.manifests)
    return any((m.run, m.agreement_digest) == (run, digest) for m in found)


def _refusal(
    config: Config, rounds: Sequence[RoundFolder], lacking: Sequence[str], reached: int | None
) -> str:
    from distqat.checkpoint.inventory import earlier_runs, inventory
    from distqat.checkpoint.shard import differing

    run, folder = config.experiment_prefix, config.checkpoint_dir
    own = [r.manifests[s] for r in rounds for s in lacking if s in r.manifests and r.manifests[s].run == run]
    if own:
        newest, mine = own[-1], structure(config, own[-1].stage)
        keys = differing(mine, newest.agreement)
        told = ", ".join(f"{key} ({newest.agreement.get(key)}, now {mine.get(key)})" for key in keys[:5])
        return f"run {run!r} cannot be resumed with another {told or 'model'}; set it back, or start anew"
    went = "no commit log says how far it went" if reached is None else f"its log says round {reached}"
    return (
        f"there is nothing to resume of run {run!r} ({went}): no round of stage {', '.join(lacking)}. "
        f"{inventory(folder)}{earlier_runs(folder)}. Start without --resume, or name the run with "
        "--experiment-prefix, or its folder with --param-mirror-checkpoint-dir"
    )
