"""What a running swarm shows of itself: from the client's status to a line or a panel. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distqat.metrics.status_waits import waits_of

if TYPE_CHECKING:
    from rich.console import RenderableType

_TAKES_STEPS = ("calibrating", "serving")


@dataclass(frozen=True)
class ClientStatus:
    """One status of the client, as far as it is shown."""

    step: int = 0  # of the trainer that is furthest
    loss: float | None = None  # mean over the trainers
    samples_per_s: float = 0.0
    bytes_out: int = 0  # of servers and trainers
    round: int | None = None  # committed by every stage; None: not even round 0
    replicas: Mapping[str, int] = field(default_factory=dict)  # by stage: those that take steps
    wait: str = ""  # the longest wait of a role: who for what, and for how long
    unsaved: str = ""  # why checkpoints are not written at the moment

    @property
    def missing(self) -> list[str]:
        """Stages that nobody serves."""
        return [stage for stage, count in self.replicas.items() if count == 0]

    @classmethod
    def of(cls, status: Mapping[str, Any], stages: Sequence[str], time: float = 0.0) -> ClientStatus:
        """From the fields of the client's answer; `stages` in pipeline order, none for a baseline.

        time: now (Unix time), for how long somebody waits.
        """
        trainers, servers = status.get("trainers") or [], status.get("servers") or []
        rounds = [(status.get("rounds") or {}).get(stage) for stage in stages]
        losses = [float(each["loss"]) for each in trainers if each.get("loss") is not None]
        known = [int(number) for number in rounds if number is not None]
        return cls(
            step=max((int(each.get("step", 0)) for each in trainers), default=0),
            loss=math.fsum(losses) / len(losses) if losses else None,
            samples_per_s=math.fsum(float(each.get("sps", 0.0)) for each in trainers),
            bytes_out=sum(int(each.get("bytes_out", 0)) for each in (*trainers, *servers)),
            round=min(known) if known and len(known) == len(rounds) else None,
            replicas={stage: sum(_serves(server, stage) for server in servers) for stage in stages},
            wait=longest_wait(waits_of(status), time),
            unsaved=unsaved(status),
        )


@dataclass(frozen=True)
class RunGoal:
    """When the run is over: after `outer_steps` rounds, or (a baseline: no rounds) after `steps` steps."""

    outer_steps: int | None
    steps: int

    def share(self, reading: ClientStatus) -> float:
        """How much is done, 0 to 1; steps tell what rounds are too coarse for, up to half a round."""
        by_step = reading.step / max(1, self.steps)
        if self.outer_steps is None:
            return min(1.0, by_step)
        done = reading.round or 0
        upper = (done + 0.5) / self.outer_steps
        return min(1.0, max(done / self.outer_steps, min(by_step, upper)))


@dataclass
class TimeLeft:
    """Estimates the time left from what was done since the first step was seen."""

    goal: RunGoal
    share: float = 0.0
    _began: tuple[float, float] | None = None  # seconds, share

    def update(self, reading: ClientStatus, now_s: float) -> float | None:
        """Seconds left as of `now_s`; None: too early to tell. Never goes back in what is done."""
        self.share = max(self.share, self.goal.share(reading))
        if self._began is None and reading.step > 0:
            self._began = (now_s, self.share)
        if self._began is None:
            return None
        seconds, done = now_s - self._began[0], self.share - self._began[1]
        return None if done <= 0 or seconds < 1.0 else seconds * (1.0 - self.share) / done


@dataclass(frozen=True)
class ProgressFrame:
    """One picture of the progress display."""

    title: str
    phase: str  # what it waits for; "" while it trains
    elapsed_s: float
    reading: ClientStatus
    goal: RunGoal
    share: float = 0.0
    left_s: float | None = None


def plain_line(frame: ProgressFrame) -> str:
    """`step 120 loss 1.23456 samples/s 210 round 12/40 replicas front 2 back 2 left 1:20`."""
    reading = frame.reading
    if frame.phase and not reading.step:
        return f"{clock(frame.elapsed_s)} {frame.phase}"
    words = [f"step {reading.step}", f"loss {number(reading.loss)}", f"samples/s {reading.samples_per_s:.0f}"]
    if frame.goal.outer_steps is not None:
        words += [f"round {reading.round or 0}/{frame.goal.outer_steps}"]
    else:
        words += [f"of {frame.goal.steps}"]
    if reading.replicas:
        words += [f"replicas {replicas(reading)}"]
    if frame.left_s is not None:
        words += [f"left {clock(frame.left_s)}"]
    if frame.phase:
        words += [f"({frame.phase})"]
    return " ".join(words)


def panel(frame: ProgressFrame) -> RenderableType:
    """The same for a terminal: a bar over the rounds, and the figures below it."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    reading, goal = frame.reading, frame.goal
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    total = goal.outer_steps
    done = f"round {reading.round or 0}/{total}" if total is not None else f"step {reading.step}/{goal.steps}"
    left = f"left {clock(frame.left_s)}" if frame.left_s is not None else f"{clock(frame.elapsed_s)}"
    bar.add_row(
        Text(frame.title, "bold"),
        ProgressBar(total=1.0, completed=frame.share, pulse=not reading.step, animation_time=frame.elapsed_s),
        Text(f"{done}  {frame.share:4.0%}  {left}"),
    )
    figures = [("step", str(reading.step)), ("loss", number(reading.loss))]
    figures += [("samples/s", f"{reading.samples_per_s:.0f}")]
    if reading.replicas:
        figures += [("replicas", replicas(reading))]
    line = Text("  ")
    for name, value in figures if reading.step else []:
        line.append(f"{name} ", "dim").append(f"{value}   ")
    if frame.phase:
        line.append(frame.phase, "yellow" if reading.step else "dim")
    return Group(bar, line)


def replicas(reading: ClientStatus) -> str:
    """`front 2 back 1`."""
    return " ".join(f"{stage} {count}" for stage, count in reading.replicas.items())


def unsaved(status: Mapping[str, Any]) -> str:
    """`checkpoints are not written: PATH could not be written: No space left ...`; "" if they are."""
    of_servers = (str(server.get("unsaved") or "") for server in status.get("servers") or [])
    why = next(filter(None, (str(status.get("unsaved") or ""), *of_servers)), "")
    return f"checkpoints are not written: {why}" if why else ""


def longest_wait(waits: Sequence[Mapping[str, Any]], time: float) -> str:
    """`trainer 0 waits for a batch from the data server, 0:42`; "" when nobody waits."""
    if not waits:
        return ""
    first = min(waits, key=lambda wait: float(wait.get("since", time)))
    what = " ".join(str(first.get("what")).split())[:200]
    return f"{first.get('role')} waits for {what}, {clock(time - float(first.get('since', time)))}"


def number(loss: float | None) -> str:
    """A loss as everywhere in logs; `-` before there is one."""
    return "-" if loss is None else f"{loss:.5f}"


def clock(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _serves(server: Mapping[str, Any], stage: str) -> bool:
    return str(server.get("uid", "")).partition(".")[0] == stage and server.get("state") in _TAKES_STEPS
