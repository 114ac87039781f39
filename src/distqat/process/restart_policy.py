"""When a role that ended is started again: exponential back-off, and an end to crash loops. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from distqat.failures import REPEATS
from distqat.process.launcher_notices import LastWords

USAGE = 2  # the exit code of a bad command line or configuration; starting again cannot help


@dataclass(frozen=True)
class RoleFinished:
    """It ended well; nothing to do."""


@dataclass(frozen=True)
class RestartAfter:
    """Start it again after `delay_s`."""

    delay_s: float


@dataclass(frozen=True)
class GiveUp:
    """Leave it; `reason` is for the user."""

    reason: str


Decision = RoleFinished | RestartAfter | GiveUp


@dataclass(frozen=True)
class RestartPolicy:
    """The n-th crash in a row waits `first_delay_s * factor**(n-1)`, at most `max_delay_s`.

    A run of `healthy_s` forgets the crashes before it; more than `crashes` within `window_s` is a crash loop,
    and so are more than `in_a_row`, however long each took: a server whose swarm is gone needs some seconds
    to find that out. A fault that ends it `alike` times in a row with the same sentence will do so again.
    """

    first_delay_s: float = 0.2
    factor: float = 2.0
    max_delay_s: float = 30.0
    crashes: int = 5
    window_s: float = 120.0
    healthy_s: float = 60.0
    in_a_row: int = 12
    alike: int = REPEATS


@dataclass(frozen=True)
class CrashHistory:
    """When a role crashed lately (seconds of a monotonic clock), and how often in a row."""

    crashes: tuple[float, ...] = ()
    in_a_row: int = 0
    last: str = ""  # the sentence of the last fault
    alike: int = 0  # how often in a row it was that sentence


def after_exit(
    history: CrashHistory,
    policy: RestartPolicy,
    *,
    code: int,
    ran_s: float,
    now: float,
    words: LastWords | None = None,
) -> tuple[Decision, CrashHistory]:
    """What to do about a role that ended with `code` after `ran_s`, and the history from here on."""
    if code == 0:
        return RoleFinished(), CrashHistory()
    if code == USAGE:
        return GiveUp("its command line or configuration was refused"), history
    if words is not None and words.kind == "final":
        return GiveUp("starting it again cannot help"), history
    recent = (*(at for at in history.crashes if now - at < policy.window_s), now)
    row = 1 if ran_s >= policy.healthy_s else history.in_a_row + 1
    fault = words.sentence if words is not None and words.kind == "fault" else ""
    alike = 0 if not fault else history.alike + 1 if fault == history.last else 1
    after = CrashHistory(recent, row, fault, alike)
    if alike >= policy.alike:
        return GiveUp(f"it ended {alike} times in a row with the same error"), after
    if len(recent) > policy.crashes:
        return GiveUp(f"it crashed {len(recent)} times within {policy.window_s:g} s"), after
    if row > policy.in_a_row:
        return GiveUp(f"it crashed {row} times in a row and never ran for {policy.healthy_s:g} s"), after
    exponent = min(row - 1, 64)  # far beyond any max_delay_s, and still a float
    return RestartAfter(min(policy.first_delay_s * policy.factor**exponent, policy.max_delay_s)), after
