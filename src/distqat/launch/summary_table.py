"""The end of a run: what the client wrote in summary.json, as a table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distqat.distributed.coordination.verdict import not_judged
from distqat.errors import RoleError
from distqat.launch.progress_text import clock, number

if TYPE_CHECKING:
    from rich.table import Table

    from distqat.launch.display import Display

SHARES = ("accuracy",)  # metrics in [0, 1]
SAMPLES = "samples.png"  # of the first batch, where there are pictures
_UID = re.compile(r"[^\s.]+\.\d+\.\d+\.\d+")


@dataclass(frozen=True)
class SummaryTable:
    """What came out of a run. Figures that it did not measure are None."""

    mode: str  # "swarm" or "baseline"
    metric: str
    score: float | None  # of the assembled model on held-out data
    loss_first: float | None
    loss_last: float | None
    samples: int
    samples_per_s: float
    seconds: float
    bytes_sent: Mapping[str, int] = field(default_factory=dict)  # by kind of role: "servers (4)"
    model: str = ""
    checkpoints: str = ""
    rounds: int = 0
    discarded_rounds: int = 0
    evaluation_error: str = ""  # why the model could not be judged
    data: str = ""  # what the data set left out

    @property
    def failure(self) -> str:
        """One sentence when the run is over and its model could not be judged, else ""."""
        return not_judged(self.model, self.evaluation_error)

    @classmethod
    def read(cls, path: Path, mode: str) -> SummaryTable:
        """RoleError: it is not there, or no summary."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RoleError(f"no summary at {path}: {error.strerror}") from error
        except ValueError as error:
            raise RoleError(f"{path} is no JSON: {error}") from error
        if not isinstance(fields, dict):
            raise RoleError(f"{path} is no summary: {str(fields)[:80]}")
        return cls.of(fields, mode)

    @classmethod
    def of(cls, fields: Mapping[str, Any], mode: str) -> SummaryTable:
        """From the fields that the client writes; RoleError names one that cannot be read.

        Those of an older release call every metric "accuracy".
        """
        metric = str(fields.get("metric") or "accuracy")
        sent = fields.get("bytes_sent") or {}
        try:
            return cls(
                mode=mode,
                metric=metric,
                score=_figure(fields.get("value", fields.get("accuracy"))),
                loss_first=_figure(fields.get("loss_first")),
                loss_last=_figure(fields.get("loss_last")),
                samples=int(fields.get("samples", 0)),
                samples_per_s=float(fields.get("samples_per_s", 0.0)),
                seconds=float(fields.get("seconds", 0.0)),
                bytes_sent=by_kind({str(role): int(count) for role, count in sent.items()}),
                model=str(fields.get("model") or ""),
                checkpoints=str(fields.get("checkpoints") or ""),
                rounds=int(fields.get("rounds") or 0),
                discarded_rounds=int(fields.get("discarded_rounds") or 0),
                evaluation_error=str(fields.get("evaluation_error") or ""),
                data=str((fields.get("data") or {}).get("line") or ""),
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise RoleError(f"the summary cannot be read: {error}") from error


def summary_table(runs: Sequence[SummaryTable]) -> Table:
    """One column per run; two runs get a third, how far the first is from the second."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=len(runs) > 1)
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(run.mode, justify="right" if len(runs) > 1 else "left", no_wrap=True)
    if len(runs) == 2:
        table.add_column(f"{runs[0].mode} − {runs[1].mode}", justify="right", no_wrap=True)
    for label, cells in _rows(runs):
        table.add_row(label, *cells)
    return table


def places(run: SummaryTable, log_dir: Path) -> list[str]:
    """What is said of the data, and where everything is, a line each: no table cuts them."""
    sheet = log_dir / SAMPLES
    found = [("data", run.data), ("samples", str(sheet) if sheet.is_file() else "")]
    found += [("model", run.model), ("checkpoints", run.checkpoints), ("logs", f"{log_dir}/")]
    return [f"{name:<12} {place}" for name, place in found if place]


def conclude(runs: Sequence[SummaryTable], log_dir: Path, display: Display) -> None:
    """Say how runs came out, and where everything is."""
    display.say("")
    display.table(summary_table(runs))
    for line in places(runs[0], log_dir):
        display.say(line)


def _rows(runs: Sequence[SummaryTable]) -> list[tuple[str, list[str]]]:
    first, last = runs[0], runs[-1]
    two = len(runs) == 2
    rows = [
        (
            "loss, first step",
            [number(run.loss_first) for run in runs],
            _difference(first, last, "loss_first"),
        ),
        ("loss, last steps", [number(run.loss_last) for run in runs], _difference(first, last, "loss_last")),
        (f"{first.metric}, held out", [_score(run) for run in runs], _apart(first, last)),
        ("samples", [f"{run.samples:,}" for run in runs], ""),
        ("samples/s", [f"{run.samples_per_s:.1f}" for run in runs], _times(first, last)),
        ("time", [clock(run.seconds) for run in runs], ""),
    ]
    if any(run.rounds for run in runs):
        rows.append(("rounds", [_rounds(run) for run in runs], ""))
    for role in dict.fromkeys(role for run in runs for role in run.bytes_sent):
        sent = [size(run.bytes_sent[role]) if role in run.bytes_sent else "-" for run in runs]
        rows.append((f"sent by {role}", sent, ""))
    return [(label, [*cells, apart] if two else cells) for label, cells, apart in rows]


def by_kind(sent: Mapping[str, int]) -> dict[str, int]:
    """Bytes of `front.0.0.0`, `trainer 0`, `client` as those of servers, trainers and the client."""
    kinds: dict[str, list[int]] = {}
    for role, count in sent.items():
        kind = "server" if _UID.fullmatch(role) else role.partition(" ")[0]
        kinds.setdefault(kind, []).append(count)
    return {
        f"{kind}s ({len(counts)})" if kind in ("server", "trainer") else kind: sum(counts)
        for kind, counts in kinds.items()
    }


def _rounds(run: SummaryTable) -> str:
    if not run.rounds:
        return "-"
    return f"{run.rounds}" + (f", {run.discarded_rounds} discarded" if run.discarded_rounds else "")


def _difference(first: SummaryTable, second: SummaryTable, name: str) -> str:
    a, b = getattr(first, name), getattr(second, name)
    return "" if a is None or b is None else f"{a - b:+.5f}"


def _score(run: SummaryTable) -> str:
    """A share in percent; a perplexity as it is."""
    if run.evaluation_error:
        return "not judged"
    return percent(run.score) if run.metric in SHARES else number(run.score)


def _apart(first: SummaryTable, last: SummaryTable) -> str:
    shares = first.metric in SHARES
    return _points(first.score, last.score) if shares else _difference(first, last, "score")


def _points(a: float | None, b: float | None) -> str:
    return "" if a is None or b is None else f"{100 * (a - b):+.2f} points"


def _times(first: SummaryTable, second: SummaryTable) -> str:
    return f"× {first.samples_per_s / second.samples_per_s:.2f}" if second.samples_per_s > 0 else ""


def percent(share: float | None) -> str:
    """0.9675 -> `96.75 %`."""
    return "-" if share is None else f"{100 * share:.2f} %"


def size(count: float) -> str:
    """Bytes with a decimal unit: `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _figure(value: Any) -> float | None:
    if value is None:
        return None
    figure = float(value)
    return figure if math.isfinite(figure) else math.nan
