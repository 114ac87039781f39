"""A swarm as tables: what the monitor's `--watch` and the progress display show."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]
UNKNOWN = "-"
TIMES = ("forward_s", "backward_s", "optimizer_s", "idle_s")


def swarm_table(status: Mapping[str, Sequence[Row]]) -> Table:
    """Servers, trainers and the latest rounds, one below the other.

    Args:
        status: `servers` (uid, state, device, step, round, forward_s, backward_s, optimizer_s, idle_s, queue,
            bytes_in, bytes_out, samples_per_s), `trainers` (pipeline, step, loss, sps, tokens_per_s) and
            `rounds` (stage, round, members, duration_s, bytes, committed, reason); `waits` (role, what,
            since) if anybody waits. What is missing is a dash.
    """
    from rich.table import Table

    whole = Table.grid(padding=(0, 0, 1, 0))
    whole.add_column()
    whole.add_row(_servers(status.get("servers", ())))
    whole.add_row(_trainers(status.get("trainers", ())))
    whole.add_row(_rounds(status.get("rounds", ())))
    if status.get("waits"):
        whole.add_row(_waits(status["waits"]))
    return whole


def _servers(rows: Sequence[Row]) -> Table:
    """Few columns, so that it fits a terminal of 80."""
    columns = ("Server", "State", "Device", "Step", "Round", "F/B/Idle %", "Q", "MB in/out", "Sps")
    table = _table("No server answers" if not rows else None, columns)
    for row in rows:
        spent = sum(_float(row.get(name)) or 0.0 for name in TIMES)
        shares = [_share(row.get(name), spent) for name in ("forward_s", "backward_s", "idle_s")]
        counts = [_text(row.get(name)) for name in ("uid", "state", "device", "step", "round")]
        traffic = [_megabytes(row.get(name)) for name in ("bytes_in", "bytes_out")]
        queue, rate = _text(row.get("queue")), _number(row.get("samples_per_s"), 0)
        table.add_row(*counts, "/".join(shares), queue, "/".join(traffic), rate)
    return table


def _trainers(rows: Sequence[Row]) -> Table:
    table = _table(
        "No trainer reports" if not rows else None, ("Trainer", "Step", "Loss", "Samples/s", "Tokens/s")
    )
    for row in rows:
        rates = [_number(row.get(name), 1) for name in ("sps", "tokens_per_s")]
        table.add_row(_text(row.get("pipeline")), _text(row.get("step")), _number(row.get("loss"), 5), *rates)
    return table


def _rounds(rows: Sequence[Row]) -> Table:
    columns = ("Stage", "Round", "Members", "Seconds", "MB", "Outcome")
    table = _table("No round has ended yet" if not rows else None, columns)
    for row in rows:
        committed = row.get("committed")
        reason = row.get("reason") or "no reason given"
        outcome = (
            UNKNOWN if committed is None else "committed" if committed else _text(f"discarded: {reason}")
        )
        facts = [_text(row.get(name)) for name in ("stage", "round", "members")]
        table.add_row(*facts, _number(row.get("duration_s"), 2), _megabytes(row.get("bytes")), outcome)
    return table


def _waits(rows: Sequence[Row]) -> Table:
    """Waits of more than ten seconds, and since when."""
    table = _table(None, ("Who waits", "For what", "Since"))
    for row in rows:
        since = time.strftime("%H:%M:%S", time.localtime(_float(row.get("since")) or 0.0))
        table.add_row(_text(row.get("role")), _words(row.get("what")), since)
    return table


def _table(title: str | None, columns: Sequence[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    sentences = ("Outcome", "For what")
    for place, name in enumerate(columns):
        text = place == 0 or name in ("State", "Device", *sentences)
        table.add_column(name, justify="left" if text else "right", no_wrap=name not in sentences)
    return table


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _text(value: Any) -> str:
    """Plain text: names come from peers, so their brackets must not become markup."""
    from rich.markup import escape

    return UNKNOWN if value is None else escape(str(value)[:60])


def _words(value: Any) -> str:
    """A sentence, which may take several lines."""
    from rich.markup import escape

    return escape(" ".join(str(value).split())[:300])


def _number(value: Any, digits: int) -> str:
    number = _float(value)
    return UNKNOWN if number is None else f"{number:.{digits}f}"


def _share(value: Any, total: float) -> str:
    number = _float(value)
    return UNKNOWN if number is None or total <= 0 else f"{100 * number / total:.0f}"


def _megabytes(value: Any) -> str:
    number = _float(value)
    return UNKNOWN if number is None else f"{number / 1e6:.1f}"
