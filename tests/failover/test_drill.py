"""The documented drill, the quick one: it passes, and what it wrote fails once it is forged."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from distqat.drill.failover_drill import conclude
from distqat.drill.timeline import Timeline
from distqat.drill.verdict import Evidence, judge

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds roles and their daemons in /proc"),
    pytest.mark.timeout(200),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder for the drill, of a short name: sockets of the swarm lie in it."""
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)
        assert list(Path(folder).glob("distqat-*")) == []


def drill(folder: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "test_failover.py", "--quick", f"--log-dir={folder / 'logs'}", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def forge_a_second_application(logs: Path) -> str:
    """Have a server of another slot tell that it applied a step that is applied already."""
    journal = next(path for path in sorted((logs / "metrics").glob("server_*.jsonl")) if path.stat().st_size)
    lines = journal.read_text().splitlines()
    line = next(record for record in map(json.loads, lines) if record["event"] == "applied")
    forged = {**line, "peer": "forged", "tenancy": "forged"}
    journal.with_name("server_99.jsonl").write_text(json.dumps(forged) + "\n")
    return str(line["id"][2])


@pytest.mark.usefixtures("temporary")
def test_the_quick_drill_passes_and_a_forged_record_fails_it(tmp_path: Path) -> None:
    with drill(tmp_path, "--public-ip=127.0.0.1", f"--json={tmp_path / 'drill.json'}") as process:
        output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert "VERDICT: PASS" in output
    written = json.loads((tmp_path / "drill.json").read_text())
    assert written["verdict"] == "PASS"
    kills = [event for event in written["timeline"] if event["what"].startswith("SIGKILL")]
    assert len(kills) == 2  # of one, and of two at once
    assert all(event["recovery_s"] > 0 for event in kills), kills
    assert [each["name"][:2] for each in written["invariants"] if each["name"][0] == "I"] == [
        "I1", "I2", "I3", "I4", "I5",
    ]  # fmt: skip
    number = forge_a_second_application(tmp_path / "logs")
    rows = judge(Evidence.read(tmp_path / "logs"))
    good, evidence = rows["I2 steps count once"]
    assert not good
    assert f"step {number} " in evidence
    assert conclude(Timeline(), rows, None) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("temporary")
def test_an_interrupted_drill_cleans_up(tmp_path: Path) -> None:
    with drill(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "all servers serve" in line:
                break
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) > 8
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        output = process.stdout.read()
        assert process.wait(60) == 0, output
    assert "interrupted" in output
    print(f"over {time.monotonic() - began:.1f} s after Ctrl-C")
    _, alive = psutil.wait_procs(family, timeout=2.0)
    assert alive == []


def test_bad_usage_is_refused() -> None:
    for flags in (["--quik"], ["--world-size=1"]):
        done = subprocess.run(
            [sys.executable, "test_failover.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2, done.stderr


def test_pytest_collects_nothing_of_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "test_failover.py", "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "no tests ran" in done.stdout
