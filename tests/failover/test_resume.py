"""A run that is cut off, by a power cut as far as it can tell, and started again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.failover.process_swarm import ROOT, STAGES, START_S, ProcessSwarm, until
from typing_extensions import Self

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.timeout(170),
]
ROUNDS, STEPS = 12, 25


class Run:
    """run_local.py in a folder of its own."""

    def __init__(self, folder: Path, *flags: str) -> None:
        folder.mkdir(exist_ok=True)
        self.logs = folder / "logs"
        self._folder, self._flags = folder, flags
        self._runtime = folder.parent / folder.name[0]  # short: the addresses of sockets are
        self._process: subprocess.Popen[str] | None = None

    def start(self, *flags: str) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "run_local.py", "--config-path=configs/mlp.yaml", "--no-progress"),
                *("--monitor-port=0", "--client-port=0", "--server-base-port=0", "--world-size=1"),
                *(f"--diloco-outer-steps={ROUNDS}", f"--diloco-inner-steps={STEPS}"),
                "--param-mirror-refresh-every=0.3",
                *(f"--log-dir={self.logs}", f"--param-mirror-checkpoint-dir={self._folder / 'checkpoints'}"),
                *(*self._flags, *flags),
            ],
            cwd=ROOT,
            env={**os.environ, "XDG_RUNTIME_DIR": str(self._runtime)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.power_cut()

    def end(self, code: int = 0) -> str:
        assert self._process is not None
        output, _ = self._process.communicate(timeout=120)
        assert self._process.returncode == code, output
        return output

    def power_cut(self) -> None:
        """SIGKILL to everything at once."""
        assert self._process is not None
        launcher = psutil.Process(self._process.pid)
        family = [launcher, *launcher.children(recursive=True)]
        for process in family:
            process.suspend()  # nobody sees the others die
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=10)
        self._process.communicate()

    def steps(self) -> list[dict[str, Any]]:
        found = []
        for path in (self.logs / "metrics").glob("trainer_*.jsonl"):
            records = (json.loads(line) for line in path.read_text().splitlines() if line.endswith("}"))
            found += [record for record in records if record["event"] == "step"]
        return found

    def result(self) -> tuple[dict[str, str], str]:
        """The digests of the last round, and that of the model."""
        summary = json.loads((self.logs / "summary.json").read_text())
        assert summary["rounds"] == ROUNDS
        return summary["digests"], hashlib.sha256(Path(summary["model"]).read_bytes()).hexdigest()

    def log(self, name: str) -> str:
        return "".join(path.read_text() for path in self.logs.glob(f"{name}*.log"))


GAN = "--config-path=configs/dcgan.yaml"  # two steps per batch: what is saved must hold both, and the noise


@pytest.mark.parametrize(
    ("cuts", "flags"),
    [
        pytest.param((70,), (), id="once"),
        pytest.param((41, 190), (), id="twice", marks=pytest.mark.slow),
        pytest.param((70,), (GAN,), id="phases", marks=pytest.mark.slow),
    ],
)
def test_same_bits_as_uninterrupted(tmp_path: Path, cuts: tuple[int, ...], flags: tuple[str, ...]) -> None:
    with Run(tmp_path / "whole", *flags) as whole, Run(tmp_path / "cut", *flags) as cut:
        whole.start()
        whole.end()
        cut_and_resume(cut, cuts)
        said = re.findall(r"the run goes on from checkpoint step (\S+)", cut.log("client"))
        assert len(said) == len(cuts), cut.log("client")
        print("resumed from", said)
        assert whole.result() == cut.result()


def cut_and_resume(cut: Run, cuts: tuple[int, ...]) -> None:
    cut.start()
    for at in cuts:
        until(lambda at=at: any(s["step"] >= at for s in cut.steps()), f"step {at}", START_S)  # type: ignore[misc]
        cut.power_cut()
        cut.start("--resume")
    cut.end()


def test_with_replicas(tmp_path: Path) -> None:
    with Run(tmp_path / "run", "--world-size=2") as run:
        run.start()
        until(lambda: "Round 4 of front committed" in run.log("client"), "round 4", START_S)
        run.power_cut()
        began = time.monotonic()
        cut = time.time()
        run.start("--resume")
        until(lambda: any(s["time"] > cut for s in run.steps()), "a step after the cut", START_S)
        print(f"first step {time.monotonic() - began:.1f} s after the restart")
        run.end()
        assert "the run goes on from the newest round of every stage" in run.log("client")
        rounds = re.findall(r"stage (\w+) goes on from round (\d+)", run.log("client"))
        assert {stage for stage, _ in rounds} == {"front", "back"}
        assert all(int(number) >= 3 for _, number in rounds)
        run.result()


@pytest.mark.slow  # unit/distributed/coordination/test_run_start.py has the rules
def test_what_may_change(tmp_path: Path) -> None:
    with Run(tmp_path / "run") as run:
        run.start("--resume")
        assert "there is nothing to resume" in run.end(2)
        run.start()
        until(lambda: "Round 2 of back committed" in run.log("client"), "round 2", START_S)
        run.power_cut()
        run.start("--resume", "--seed=7")
        assert "seed (0, now 7)" in run.end(2)
        changed = ("--diloco-batch-size-per-step=16", "--diloco-outer-optim-sgd-lr=0.5")
        run.start("--resume", *changed)
        run.end()
        said = run.log("client")
        assert "changed since the last start: diloco.batch_size_per_step: 32 -> 16" in said
        assert "changed since the last start: diloco.outer_optim.sgd_lr: 0.7 -> 0.5" in said
        run.result()
        run.start("--resume", *changed)  # it is finished: judged again, nothing is trained
        steps = len(run.steps())
        run.end()
        assert len(run.steps()) == steps


def test_a_client_whose_disk_is_gone(tmp_path: Path) -> None:
    """It finds no log; servers prove the round that they hold, and it goes on in a new generation."""
    with ProcessSwarm(tmp_path) as swarm:
        before = {stage: swarm.committed(stage) for stage in STAGES}
        servers = set(swarm.pids("server"))
        log = swarm.logs / "commit_log.jsonl"
        log.rename(log.with_name("commit_log.lost.jsonl"))
        cut = swarm.kill(swarm.pid("client"))
        said = swarm.logs / "client.log"
        until(
            lambda: "the run goes on from the newest round of every stage" in said.read_text(), "a decision"
        )
        decided = time.time()
        until(lambda: swarm.steps(decided), "a step after the decision", START_S)
        print(f"first step {swarm.steps(decided)[0]['time'] - cut:.1f} s after the death of the client")
        swarm.goes_on()
        assert set(swarm.pids("server")) == servers  # nobody was started again
        rounds = dict(re.findall(r"stage (\w+) goes on from round (\d+)", said.read_text()))
        assert all(int(rounds[stage]) >= before[stage] for stage in STAGES), (rounds, before)
