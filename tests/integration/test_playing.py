"""Reinforcement learning over the real roles: no data server; what does not fit ends the run at its start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.local_scene import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="pidfd and PR_SET_PDEATHSIG are Linux's"),
    pytest.mark.timeout(150),
]


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    places = (f"--log-dir={folder / 'logs'}", f"--param-mirror-checkpoint-dir={folder / 'ck'}")
    ports = ("--monitor-port=0", "--client-port=0", "--server-base-port=0")
    return subprocess.run(
        [sys.executable, "run_local.py", "--config-path=configs/ppo.yaml", *ports, *places, *flags],
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
        capture_output=True, text=True, timeout=120, cwd=ROOT, check=False,
    )  # fmt: skip


def test_a_swarm_plays_and_is_judged_by_its_return(tmp_path: Path) -> None:
    done = run(tmp_path, "--replicas=1", "--diloco-outer-steps=2", "--diloco-inner-steps=16")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "logs" / "summary.json").read_text())
    assert found["metric"] == "return"
    assert found["heldout_samples"] == 20
    assert found["value"] >= 8
    assert found["samples"] >= 2 * 16 * 256
    names = {path.name for path in (tmp_path / "logs").iterdir()}
    assert "trainer_0.log" in names
    assert not [name for name in names if name.startswith("data_server")]
    assert "episodes ended, mean return" in (tmp_path / "logs" / "trainer_0.log").read_text()


def test_an_environment_that_does_not_fit_ends_the_run_at_its_start(tmp_path: Path) -> None:
    done = run(tmp_path, "--data-dataset-name=Pendulum-v1")
    assert done.returncode != 0
    assert "set in_features: 3, num_actions: 1, continuous: true" in done.stdout + done.stderr
