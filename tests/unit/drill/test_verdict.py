"""Each broken invariant is found in what a swarm wrote, and ends a drill with 1."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distqat.drill.failover_drill import conclude
from distqat.drill.timeline import Timeline, TimelineLines
from distqat.drill.verdict import Evidence, judge

Change = Callable[[Evidence], Any]


def step(number: int, loss: float | None = 1.0) -> dict[str, Any]:
    route = {"route": ["front.0.0.0", "back.0.0.0"], "peers": ["f", "b"], "lost": []}
    return {"event": "step", "time": float(number), "id": ["t", 1, number, 0], "loss": loss, **route}


def who(stage: str) -> dict[str, Any]:
    uid = f"{stage}.0.0.0"
    return {"uid": uid, "peer": stage[0], "tenancy": f"{uid}/1"}


def healthy() -> Evidence:
    """Four steps and two rounds of two stages."""
    servers: list[dict[str, Any]] = []
    log: list[dict[str, Any]] = [{"kind": "run"}]
    for stage in ("front", "back"):
        log.append({"kind": "round", "stage": stage, "round": 0, "digest": f"{stage}0"})
        for number in range(1, 5):
            servers.append({"event": "applied", "id": ["t", 1, number, 0], **who(stage)})
            if number % 2 == 0:
                round = number // 2
                log.append({"kind": "round", "stage": stage, "round": round, "digest": f"{stage}{round}"})
                told = {"committed": True, "round": round, "digest": f"{stage}{round}", "steps": 2}
                servers.append({"event": "round", "server_applied": number, **told, **who(stage)})
    return Evidence([step(number) for number in range(1, 5)], list(servers), list(log))


def forge_digest(evidence: Evidence) -> None:
    next(r for r in evidence.servers if r["event"] == "round")["digest"] = "forged"  # type: ignore[index]


def forge_double_apply(evidence: Evidence) -> None:
    line = next(r for r in evidence.servers if r["event"] == "applied")
    evidence.servers.append({**line, "id": ["t", 1, 1, 1], "peer": "other", "tenancy": "front.0.0.0/2"})


def forge_round_back(evidence: Evidence) -> None:
    evidence.log.append({"kind": "round", "stage": "front", "round": 1, "digest": "front1"})


def forge_nan(evidence: Evidence) -> None:
    evidence.trainers[2] = step(3, None)


def test_a_healthy_run_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = judge(healthy())
    assert all(good for good, _ in rows.values()), rows
    assert conclude(Timeline(), rows, tmp_path / "out.json") == 0
    assert "VERDICT: PASS" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] == "PASS"


@pytest.mark.parametrize(
    ("forge", "broken"),
    [
        (forge_digest, "I1"),
        (forge_double_apply, "I2"),
        (forge_round_back, "I3"),
        (forge_nan, "I4"),
    ],
)
def test_a_broken_invariant_is_named_and_fails(
    forge: Change, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence = copy.deepcopy(healthy())
    forge(evidence)
    rows = judge(evidence)
    assert [name[:2] for name, (good, _) in rows.items() if not good] == [broken]
    assert conclude(Timeline(), rows, None) == 1
    assert "VERDICT: FAIL" in capsys.readouterr().out


def test_lines_tell_an_event_and_later_its_recovery(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    timeline, lines = Timeline(), TimelineLines(sys.stdout)
    event = timeline.add("SIGKILL", awaited=True)
    lines.refresh(timeline)
    assert capsys.readouterr().out.count("SIGKILL") == 1
    event.recovery_s = 0.25
    lines.refresh(timeline)
    assert "after 0.25 s: SIGKILL" in capsys.readouterr().out
    lines.refresh(timeline)
    assert capsys.readouterr().out == ""
