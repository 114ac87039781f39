"""The tables: every fact has its place, and nothing that peers send breaks them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from distqat.metrics import swarm_table

SERVER = {
    "uid": "front.0.0.0",
    "state": "serving",
    "device": "cpu",
    "step": 120,
    "round": 4,
    "forward_s": 2.0,
    "backward_s": 5.0,
    "optimizer_s": 1.0,
    "idle_s": 2.0,
    "queue": 3,
    "bytes_in": 12_345_678,
    "bytes_out": 2_000_000,
    "samples_per_s": 88.25,
}
TRAINER = {"pipeline": 0, "step": 120, "loss": 2.345671, "sps": 12.5}
ROUNDS = [
    {"stage": "front", "round": 4, "members": 2, "duration_s": 0.75, "bytes": 500_000, "committed": True},
    {"stage": "back", "round": 4, "members": 2, "committed": False, "reason": "one digest differs"},
]


def rendered(status: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(swarm_table(status))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, begin: str) -> list[str]:
    return next(line for line in text.splitlines() if line.strip().startswith(begin)).split()


def test_every_fact_has_its_place() -> None:
    text = rendered({"servers": [SERVER], "trainers": [TRAINER], "rounds": ROUNDS})
    server = ["front.0.0.0", "serving", "cpu", "120", "4", "20/50/20", "3", "12.3/2.0", "88"]
    assert row(text, "front.0.0.0") == server
    assert row(text, "0 ") == ["0", "120", "2.34567", "12.5", "-"]
    assert row(text, "front ") == ["front", "4", "2", "0.75", "0.5", "committed"]
    assert row(text, "back ") == ["back", "4", "2", "-", "-", "discarded:", "one", "digest", "differs"]


def test_an_empty_swarm_says_so() -> None:
    text = rendered({})
    for said in ("No server answers", "No trainer reports", "No round has ended yet"):
        assert said in text


@pytest.mark.parametrize("value", [None, "[red]text[/]", "[/]", float("nan"), -1, [1], {"a": 1}, "x" * 1000])
def test_whatever_peers_send_is_shown_or_dashed(value: object) -> None:
    status = {
        "servers": [dict.fromkeys(SERVER, value)],
        "trainers": [dict.fromkeys(TRAINER, value)],
        "rounds": [dict.fromkeys(ROUNDS[1], value)],
    }
    assert "Server" in rendered(status)
