"""What happened in a run in which a server was killed, read from what its roles wrote while it ran."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from distqat.metrics.record_files import read_records

Record = Mapping[str, Any]

BIN_S = 2.0
TOLD = ("metric", "value", "rounds", "samples", "samples_per_s", "seconds")  # of summary.json
PLACE = ("date", "commit", "cpu", "cores", "python", "torch", "load_at_start", "under_load")
_STAMP = r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) .*\] "
_FOUND = re.compile(_STAMP + r"Found expert (\S+) at ", re.MULTILINE)
_GONE = re.compile(_STAMP + r"(\S+) is gone$", re.MULTILINE)
_TOOK = re.compile(_STAMP + r"(\S+) took (round \d+), .* from (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Kill:
    """Who was killed, and how the swarm got over it; moments in seconds since the start."""

    victim: str
    at: float
    went_on: float
    """Its pipeline applied a step again, through a replica that was left."""
    over: str
    served: float
    """A new process in its place served."""
    state: str
    """What that one took its state from."""


@dataclass(frozen=True)
class Story:
    """A run from its start to its end; moments in seconds since the start."""

    summary: dict[str, Any]
    stages: list[str]
    evaluations: list[tuple[float, float]]
    """When, and the metric on held-out data."""
    losses: list[tuple[float, float]]
    """When, and the mean of the training loss over BIN_S."""
    samples: dict[str, list[int]]
    """Trained by each pipeline in every BIN_S."""
    serving: dict[str, list[tuple[float, float]]]
    """From when to when each slot was served."""
    kill: Kill
    about: dict[str, Any]
    verified: str = ""
    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    answers: list[tuple[str, float]] = dataclasses.field(default_factory=list)
    label: str = ""
    pixels: list[list[float]] = dataclasses.field(default_factory=list)

    def to_json(self) -> str:
        """All of it, a line for each field; `from_json` reads it."""
        fields = dataclasses.asdict(self).items()
        return "{\n" + ",\n".join(f'"{name}": {json.dumps(value)}' for name, value in fields) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Story:
        """Raises TypeError for the fields of another version, ValueError for what is not JSON."""
        fields = json.loads(text)
        return cls(**{**fields, "kill": Kill(**fields["kill"])})


def read_story(
    log_dir: Path, stages: Sequence[str], began: float, kill: tuple[str, float], about: dict[str, Any]
) -> Story:
    """What a finished run left in its log folder. `began` and the moment of the kill: seconds since 1970.

    Raises RuntimeError when something that a swarm must do after a kill is not there.
    """
    summary = json.loads((log_dir / "summary.json").read_text(encoding="utf-8"))
    steps = [each for each in read_records(log_dir, "trainer") if each.get("event") == "step"]
    steps = sorted((step for step in steps if not step["skipped"]), key=lambda step: float(step["time"]))
    client = read_records(log_dir, "client")
    ended = max(float(step["time"]) for step in steps)
    judged = [
        (_since(began, each), float(each["value"]))
        for each in client
        if each["event"] == "evaluation" and each["time"] < ended
    ]
    return Story(
        summary={name: summary.get(name) for name in TOLD},
        stages=list(stages),
        evaluations=[*judged, (round(ended - began, 3), float(summary["value"]))],
        losses=_losses(steps, began),
        samples=_samples(steps, began),
        serving=_serving((log_dir / "client.log").read_text(encoding="utf-8"), began, ended),
        kill=_recovery(log_dir, steps, client, began, kill),
        about={name: about.get(name) for name in PLACE},
    )


def _losses(steps: Sequence[Record], began: float) -> list[tuple[float, float]]:
    bins: dict[int, list[float]] = {}
    for step in steps:
        bins.setdefault(int((step["time"] - began) / BIN_S), []).append(float(step["loss"]))
    return [((n + 0.5) * BIN_S, round(sum(each) / len(each), 5)) for n, each in sorted(bins.items())]


def _samples(steps: Sequence[Record], began: float) -> dict[str, list[int]]:
    count = int((steps[-1]["time"] - began) / BIN_S) + 1
    pipelines = sorted({int(step["pipeline"]) for step in steps})
    found = {str(pipeline): [0] * count for pipeline in pipelines}
    for step in steps:
        found[str(step["pipeline"])][int((step["time"] - began) / BIN_S)] += int(step["samples"])
    return found


def _serving(client_log: str, began: float, ended: float) -> dict[str, list[tuple[float, float]]]:
    """As the client saw it; whoever served at the end of training did so until then."""
    events = [(round(_seconds(at) - began, 3), uid, True) for at, uid in _FOUND.findall(client_log)]
    events += [(round(_seconds(at) - began, 3), uid, False) for at, uid in _GONE.findall(client_log)]
    end = round(ended - began, 3)
    spans: dict[str, list[tuple[float, float]]] = {
        uid: [] for _, uid, _ in sorted(events, key=lambda e: e[1])
    }
    since: dict[str, float] = {}
    for moment, uid, there in sorted(events):
        if there:
            since.setdefault(uid, moment)
        elif uid in since:
            spans[uid].append((since.pop(uid), min(moment, end)))
    for uid, moment in since.items():
        spans[uid].append((moment, end))
    return spans


def _recovery(
    log_dir: Path, steps: Sequence[Record], client: Sequence[Record], began: float, kill: tuple[str, float]
) -> Kill:
    """When the victim's pipeline went on and when its place was filled."""
    victim, at = kill
    died = [each for each in client if each["event"] == "fault" and each.get("uid") == victim]
    peer = died[0]["peer"] if died else None
    before = [step for step in steps if step["time"] <= at and peer in step["peers"]]
    if not before:
        raise RuntimeError(f"no pipeline trained through {victim} before it was killed; see {log_dir}")
    pipeline, place = before[-1]["pipeline"], before[-1]["route"].index(victim)
    after = [step for step in steps if step["time"] > at and step["pipeline"] == pipeline]
    on = next((step for step in after if peer not in step["peers"]), None)
    logs = "".join(path.read_text(encoding="utf-8") for path in sorted(log_dir.glob("server_*.log")))
    took = [
        (when, f"{what} from {donor}")
        for when, uid, what, donor in _TOOK.findall(logs)
        if uid == victim and _seconds(when) > at
    ]
    found = _FOUND.findall((log_dir / "client.log").read_text(encoding="utf-8"))
    again = [_seconds(when) for when, uid in found if uid == victim and _seconds(when) > at]
    if on is None or not took or not again:
        raise RuntimeError(f"the swarm did not get over the death of {victim}; see {log_dir}/client.log")
    return Kill(
        victim=victim,
        at=round(at - began, 3),
        went_on=_since(began, on),
        over=on["route"][place],
        served=round(again[0] - began, 3),
        state=took[0][1],
    )


def _since(began: float, record: Record) -> float:
    """Seconds, to the millisecond."""
    return round(float(record["time"]) - began, 3)


def _seconds(stamp: str) -> float:
    """Of a log line, since 1970."""
    return datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()
