"""An exception that nobody foresaw, at every seam between two roles: the run ends or goes on, and says why.

decision 25. Each test is a whole local run of real processes; most are slow, some stand for them in CI.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the fork server is Linux's"),
    pytest.mark.timeout(150),
]
ROOT = Path(__file__).parents[2]
FLAGS = (
    "--config-path=configs/mlp.yaml", "--experiment-prefix=chaos", "--monitor-port=0", "--client-port=0",
    "--server-base-port=0", "--diloco-outer-steps=2", "--diloco-inner-steps=3",
)  # fmt: skip

ENDS = (
    "data.collate", "data.next.before_reply", "data.consumed.before_reply",
    "replica.forward", "replica.loss", "replica.backward", "replica.optimizer", "activation.encode",
    "stage.prepare", "stage.commit.before_apply", "stage.commit.after_apply",
    "round.encode", "round.sending", "round.reducing", "round.before_vote", "round.before_merge",
    "round.before_log",
    "client.slot", "client.beat", "client.zero", "client.joined", "client.ready", "client.contribute",
    "client.vote", "client.report", "trainer.step", "model.write",
    "checkpoint.temp_file",  # which the trained model passes, too: it could be written nowhere
)  # fmt: skip
"""Raised at every passage: without it there is no run."""
GOES_ON = (
    "checkpoint.manifest", "checkpoint.rename", "checkpoint.trainer_part.rename",
    "round.after_log",  # the round stands, and the client that is started again goes on from it
)  # fmt: skip
"""Beside training, or made good by a new start: it is told and the run comes to its end."""
ONCE = (
    "data.next.before_reply@3", "replica.forward@2", "replica.loss@3", "replica.backward@4",
    "stage.prepare@2", "round.sending@1", "client.report@2", "client.ready@1", "checkpoint.manifest@1",
)  # fmt: skip
"""One of each, all in one run."""
IN_CI = ("data.next.before_reply", "replica.backward", "stage.commit.before_apply", "round.before_log")


@dataclass(frozen=True)
class Ended:
    """How a run ended, and what its logs hold."""

    code: int
    said: str
    last: str
    """The last line on standard error."""
    logs: Path


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A whole local run with failpoints; whatever is left of it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def whole(points: str, *flags: str) -> Ended:
        runtime = tmp_path / "run"
        runtime.mkdir(mode=0o700)
        environment = {**os.environ, "DISTQAT_FAILPOINTS": points, "XDG_RUNTIME_DIR": str(runtime)}
        places = (f"--log-dir={tmp_path / 'logs'}", f"--param-mirror-checkpoint-dir={tmp_path / 'ck'}")
        process = subprocess.Popen(
            [sys.executable, "run_local.py", *FLAGS, *places, *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        started.append(process)
        said, errors = process.communicate(timeout=120)
        lines = errors.strip().splitlines()
        return Ended(process.returncode, said, lines[-1] if lines else "", tmp_path / "logs")

    yield whole
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)


def fired(ended: Ended, point: str) -> bool:
    return any(f"failpoint {point}: raise" in log.read_text() for log in ended.logs.glob("*.log"))


def some(points: tuple[str, ...]) -> list[object]:
    """Those that stand for the others in CI, and the others."""
    return [point if point in IN_CI else pytest.param(point, marks=pytest.mark.slow) for point in points]


@pytest.mark.faults
@pytest.mark.parametrize("point", some(ENDS))
def test_what_training_needs_ends_the_run_with_its_cause(run: Run, point: str) -> None:
    hit = 5 if point == "data.collate" else 1  # the first batch is made before the run: refused with code 2
    # nobody asks for a contribution but another member; rounds enough that its end is not the run's
    flags = ["--replicas=2", "--diloco-outer-steps=200"] if point == "round.sending" else ["--replicas=1"]
    ended = run(f"{point}:raise@{hit}+", *flags)
    assert fired(ended, point)
    assert ended.code == 1, ended
    assert re.match(r"distqat run_local: .*ZeroDivisionError: failpoint " + re.escape(point), ended.last), (
        ended
    )
    assert re.search(r"\(distqat/[a-z_/]+\.py:\d+\)", ended.last), ended.last


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("point", GOES_ON)
def test_what_is_beside_training_is_told_and_training_goes_on(run: Run, point: str) -> None:
    ended = run(f"{point}:raise@1+", "--replicas=1")
    assert fired(ended, point)
    assert ended.code == 0, ended
    assert f"ZeroDivisionError: failpoint {point}" in ended.said
    assert (ended.logs / "summary.json").exists()


@pytest.mark.faults
def test_one_of_each_is_survived(run: Run) -> None:
    ended = run(",".join(point.replace("@", ":raise@") for point in ONCE), "--replicas=2")
    assert ended.code == 0, ended
    assert sum(fired(ended, point.partition("@")[0]) for point in ONCE) >= len(ONCE) - 1
    summary = json.loads((ended.logs / "summary.json").read_text())
    assert summary["loss_last"] < summary["loss_first"]
