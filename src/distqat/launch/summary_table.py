"""The end of a run: what the client wrote in summary.json, as a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distqat.launch.progress_text import clock, number

if TYPE_CHECKING:
    from rich.table import Table

    from distqat.launch.display import Display
    from distqat.metrics.run_summary import RunSummary

SHARES = ("accuracy",)  # metrics in [0, 1]
SAMPLES = "samples.png"  # of the first batch, where there are pictures
_UID = re.compile(r"[^\s.]+\.\d+\.\d+\.\d+")


def summary_table(runs: Sequence[RunSummary]) -> Table:
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


def places(run: RunSummary, log_dir: Path) -> list[str]:
    """What is said of the data, and where everything is, a line each: no table cuts them."""
    sheet = log_dir / SAMPLES
    found = [("data", str(run.data.get("line") or "")), ("samples", str(sheet) if sheet.is_file() else "")]
    found += [("model", run.model), ("checkpoints", run.checkpoints), ("logs", f"{log_dir}/")]
    return [f"{name:<12} {place}" for name, place in found if place]


def conclude(runs: Sequence[RunSummary], log_dir: Path, display: Display) -> None:
    """Say how runs came out, and where everything is."""
    display.say("")
    display.table(summary_table(runs))
    for line in places(runs[0], log_dir):
        display.say(line)


def _rows(runs: Sequence[RunSummary]) -> list[tuple[str, list[str]]]:
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
    by_runs = [by_kind(run.bytes_sent) for run in runs]
    for role in dict.fromkeys(role for kinds in by_runs for role in kinds):
        sent = [size(kinds[role]) if role in kinds else "-" for kinds in by_runs]
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


def _rounds(run: RunSummary) -> str:
    if not run.rounds:
        return "-"
    return f"{run.rounds}" + (f", {run.discarded_rounds} discarded" if run.discarded_rounds else "")


def _difference(first: RunSummary, second: RunSummary, name: str) -> str:
    a, b = getattr(first, name), getattr(second, name)
    return "" if a is None or b is None else f"{a - b:+.5f}"


def _score(run: RunSummary) -> str:
    """A share in percent; a perplexity as it is."""
    if run.evaluation_error:
        return "not judged"
    return percent(run.value) if run.metric in SHARES else number(run.value)


def _apart(first: RunSummary, last: RunSummary) -> str:
    shares = first.metric in SHARES
    return _points(first.value, last.value) if shares else _difference(first, last, "value")


def _points(a: float | None, b: float | None) -> str:
    return "" if a is None or b is None else f"{100 * (a - b):+.2f} points"


def _times(first: RunSummary, second: RunSummary) -> str:
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
