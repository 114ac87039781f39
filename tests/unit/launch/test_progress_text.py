from __future__ import annotations

import io
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.launch.progress_text import (
    ClientStatus,
    ProgressFrame,
    RunGoal,
    TimeLeft,
    clock,
    panel,
    plain_line,
)

STAGES = ("front", "back")


def status(step: int = 120, round: int | None = 12, **changes: Any) -> dict[str, Any]:
    servers = [
        {"uid": f"{stage}.0.{i}.0", "state": "serving", "bytes_out": 10} for stage in STAGES for i in (0, 1)
    ]
    trainers = [
        {"pipeline": 0, "step": step, "loss": 1.0, "sps": 100.0, "samples": 32, "bytes_out": 5},
        {"pipeline": 1, "step": step - 1, "loss": 2.0, "sps": 110.0, "samples": 32, "bytes_out": 5},
    ]
    rounds = {"front": round, "back": None if round is None else round + 1}
    fields = {
        "rounds": rounds,
        "outer_steps": 40,
        "servers": servers,
        "trainers": trainers,
        "finished": False,
    }
    return {**fields, **changes}


def frame(reading: ClientStatus, phase: str = "", left_s: float | None = 80.0) -> ProgressFrame:
    return ProgressFrame("resnet18 swarm", phase, 30.0, reading, RunGoal(40, 400), 0.3, left_s)


def test_a_reading_sums_up_trainers_and_servers() -> None:
    reading = ClientStatus.of(status(), STAGES)
    assert (reading.step, reading.loss, reading.samples_per_s, reading.bytes_out) == (120, 1.5, 210.0, 50)
    assert reading.round == 12  # of the stage that is behind
    assert reading.replicas == {"front": 2, "back": 2}
    assert reading.missing == []


def test_servers_that_join_or_leave_do_not_count() -> None:
    servers = [{"uid": "front.0.0.0", "state": "calibrating"}, {"uid": "back.0.0.0", "state": "joining"}]
    reading = ClientStatus.of(status(servers=servers), STAGES)
    assert reading.replicas == {"front": 1, "back": 0}
    assert reading.missing == ["back"]


@pytest.mark.parametrize("empty", [{}, {"rounds": {}, "servers": None, "trainers": None}])
def test_an_empty_status_is_the_beginning(empty: dict[str, Any]) -> None:
    assert ClientStatus.of(empty, STAGES) == ClientStatus(replicas={"front": 0, "back": 0})
    assert ClientStatus.of(empty, ()) == ClientStatus()


def test_a_round_that_one_stage_has_not_reached_is_none() -> None:
    assert ClientStatus.of(status(rounds={"front": 0, "back": None}), STAGES).round is None
    assert ClientStatus.of(status(round=0), STAGES).round == 0


def test_checkpoints_that_are_not_written_stay_in_the_line() -> None:
    full = {"uid": "front.0.0.0", "state": "serving", "unsaved": "ck/1-2/front could not be written: full"}
    reading = ClientStatus.of(status(servers=[{"uid": "back.0.0.0", "unsaved": ""}, full]), STAGES)
    assert reading.unsaved == "checkpoints are not written: ck/1-2/front could not be written: full"
    assert plain_line(frame(reading, reading.unsaved)).endswith(f"({reading.unsaved})")
    assert (
        ClientStatus.of(status(unsaved="no room"), STAGES).unsaved == "checkpoints are not written: no room"
    )
    assert ClientStatus.of(status(), STAGES).unsaved == ""


def test_the_plain_line() -> None:
    line = plain_line(frame(ClientStatus.of(status(), STAGES)))
    assert line == "step 120 loss 1.50000 samples/s 210 round 12/40 replicas front 2 back 2 left 1:20"


def test_the_plain_line_before_training_says_what_it_waits_for() -> None:
    assert plain_line(frame(ClientStatus(), "starting the monitor")) == "0:30 starting the monitor"


def test_the_plain_line_of_a_baseline_has_no_rounds() -> None:
    line = plain_line(
        ProgressFrame("baseline", "", 3.0, ClientStatus(step=7, loss=math.nan), RunGoal(None, 800))
    )
    assert line == "step 7 loss nan samples/s 0 of 800"


def test_the_panel_shows_everything() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=110)
    reading = ClientStatus.of(status(servers=[{"uid": "front.0.0.0", "state": "serving"}]), STAGES)
    console.print(panel(frame(reading, "nobody serves back")))
    console.print(panel(frame(ClientStatus(), "starting the monitor", None)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("resnet18 swarm", "round 12/40", "30%", "left 1:20", "1.50000", "210", "front 1 back 0"):
        assert part in shown
    assert "nobody serves back" in shown
    assert "starting the monitor" in shown
    assert max(map(len, shown.splitlines())) <= 110


def test_steps_fill_in_between_rounds_and_never_the_next_one() -> None:
    goal = RunGoal(40, 400)
    assert goal.share(ClientStatus(step=5, round=0)) == pytest.approx(5 / 400)
    assert goal.share(ClientStatus(step=300, round=10)) == pytest.approx(10.5 / 40)
    assert goal.share(ClientStatus(step=1, round=20)) == 0.5
    assert goal.share(ClientStatus(step=900, round=40)) == 1.0
    assert RunGoal(None, 800).share(ClientStatus(step=200)) == 0.25


@given(st.lists(st.tuples(st.integers(0, 900), st.none() | st.integers(0, 60)), max_size=20))
def test_what_is_done_never_goes_back_nor_beyond_all(seen: list[tuple[int, int | None]]) -> None:
    pace, before = TimeLeft(RunGoal(40, 400)), 0.0
    for second, (step, round) in enumerate(seen):
        left = pace.update(ClientStatus(step=step, round=round), float(second))
        assert before <= pace.share <= 1.0
        assert left is None or left >= 0.0
        before = pace.share


def test_time_left_counts_from_the_first_step() -> None:
    pace = TimeLeft(RunGoal(40, 400))
    assert pace.update(ClientStatus(), 20.0) is None
    assert pace.update(ClientStatus(step=0, round=0), 25.0) is None
    assert pace.update(ClientStatus(step=4, round=0), 30.0) is None
    assert pace.update(ClientStatus(step=104, round=10), 55.0) == pytest.approx(
        25 * (1 - 10.4 / 40) / (10 / 40)
    )
    assert pace.update(ClientStatus(step=400, round=40), 130.0) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0:00"), (7.4, "0:07"), (754, "12:34"), (3723, "1:02:03"), (59.6, "1:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
