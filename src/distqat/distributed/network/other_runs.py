"""A role whose run is not in the swarm, where others are: almost always another name was meant."""

from __future__ import annotations

import asyncio

from distqat.config.fields import nearest
from distqat.errors import ConfigError, DirectoryUnavailable
from distqat.swarm.deadline import within
from distqat.swarm.directory import LEASE_S, Directory

LOOKUP_S = 6.0  # longer than the directory's own bound
LOOK_EVERY_S = 2.0
OTHERS_S = LEASE_S  # as long as a record lives: who is there has renewed it by then
SHOWN = 8


class OtherRuns:
    """Tells a run that is not there from one that is just starting again."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._looked = -LOOK_EVERY_S
        self._since: float | None = None  # when there were others, and not ours, for the first time in a row

    async def check(self, now: float) -> None:
        """Nobody of our run was found, at `now` (seconds). ConfigError: others were there all the time."""
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        others = await other_runs(self._directory)
        if not others:
            self._since = None
            return
        self._since = now if self._since is None else self._since
        if now - self._since >= OTHERS_S:
            raise no_such_run(self._directory.run, others)


async def other_runs(directory: Directory) -> list[str]:
    """Names of the runs that are there while ours is not; none when ours is, or nothing is known."""
    try:
        runs = await within(directory.runs(), LOOKUP_S)
    except (DirectoryUnavailable, asyncio.TimeoutError):
        return []
    return [] if directory.run in runs else sorted(runs)


def no_such_run(run: str, others: list[str]) -> ConfigError:
    """The error of a role whose run is not among those that are there."""
    names = ", ".join(map(repr, others[:SHOWN])) + (", ..." if len(others) > SHOWN else "")
    close = nearest(run, others) or (others[0] if len(others) == 1 else None)
    advice = f"--experiment-prefix {close}" if close else "--experiment-prefix"
    return ConfigError(
        f"there is no run {run!r} in this swarm, which has {names}; give {advice}, or the configuration of "
        "the run that is meant (--config-path)"
    )


async def check_run_is_there(directory: Directory) -> None:
    """Raises ConfigError naming the runs that are in the swarm when ours is not among them."""
    others = await other_runs(directory)
    if others:
        raise no_such_run(directory.run, others)
