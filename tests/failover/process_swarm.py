"""A swarm of real processes that runs until it is stopped, and who is who in it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import psutil
from typing_extensions import Self

from distqat.distributed.network.role_peer import sweep_dead_sockets
from distqat.drill.step_ledger import check_ledger
from distqat.failpoints import ENVIRONMENT_VARIABLE
from distqat.metrics.record_files import read_records

ROOT = Path(__file__).parents[2]
T = TypeVar("T")
STAGES = ("front", "back")
START_S, RECOVERY_S = 120.0, 60.0  # bounds for a machine that is shared; what it took is printed


def until(condition: Callable[[], T | None], what: str, timeout_s: float = RECOVERY_S) -> T:
    """What `condition` returns as soon as that is true; fails after the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.02)


class ProcessSwarm:
    """start_trainer_client.py and start_servers.py on free ports, over two replicas of two stages.

    `flags` go to every launcher. Any role can be armed while it runs, see `arm`.
    """

    def __init__(self, folder: Path, servers: int = 4, flags: Sequence[str] = ()) -> None:
        self.logs = folder / "logs"
        self.runtime = folder / "run"
        self.seen: dict[int, psutil.Process] = {}  # every process that was ever found in this run
        self.peers = ""
        self.sweeps = False  # whether somebody was killed, whose sockets are left to the next start
        self.checkpoints = folder / "checkpoints"
        self._folder = folder
        self._orders = folder / "orders"
        self._servers = servers
        self._flags = tuple(flags)
        self._launchers: list[subprocess.Popen[bytes]] = []
        self._codes: list[int] = []
        self._shared_memory: set[Path] = set()

    def __enter__(self) -> Self:
        self._shared_memory = set(Path("/dev/shm").iterdir())
        self._orders.mkdir(exist_ok=True)
        try:
            self._launch_all()
            until(lambda: len(self.pids("trainer")) == self._servers // 2, "trainers", START_S)
            until(lambda: all(self.committed(stage) >= 2 for stage in STAGES), "two rounds", START_S)
        except BaseException:
            self._end()
            raise
        return self

    def _launch_all(self) -> None:
        number = self.launch("start_trainer_client.py", "--monitor-port=0", "--client-port=0")
        told = until(
            lambda: re.search(r"Initial peers: (\S+)\n", self.said(number)), "initial peers", START_S
        )
        self.peers = told[1]
        self.add_servers(self._servers)

    def power_cut(self) -> None:
        """SIGKILL to everything; nobody sees the others die."""
        family = self.processes()
        for process in family:
            process.suspend()
        for process in family:
            process.kill()
        for number, launcher in enumerate(self._launchers):
            if launcher.wait(timeout=20) == -signal.SIGKILL:
                self._codes[number] = -signal.SIGKILL
        until(lambda: not [process for process in family if _lives(process)], "all are dead", 10.0)

    def start_again(self) -> None:
        """The same commands in the same folders, after a power cut."""
        self._launch_all()

    def __exit__(self, kind: object, *_: object) -> None:
        self.processes()
        codes = self._end()
        if kind is None:
            assert codes == self._codes, codes
            self.check_nothing_is_left()
            self.check_ledger()

    @property
    def settings(self) -> tuple[str, ...]:
        """The flags that everybody is given."""
        return (
            "--config-path=configs/mlp.yaml",
            "--diloco-outer-steps=100000",
            "--diloco-inner-steps=10",
            "--refresh-period=2",
            f"--log-dir={self.logs}",
            f"--param-mirror-checkpoint-dir={self.checkpoints}",
            *self._flags,
        )

    def launch(self, script: str, *flags: str) -> int:
        """Start a launcher; its number."""
        return self.start([sys.executable, script, *self.settings, *flags])

    def start(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, code: int = 0) -> int:
        """Start any process of this run, which shall end with `code`; its number."""
        number = len(self._launchers)
        self._codes.append(code)
        with self._output(number).open("wb") as output:
            self._launchers.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={
                        **os.environ,
                        "XDG_RUNTIME_DIR": str(self.runtime),
                        ENVIRONMENT_VARIABLE: f"@{self._orders}",
                        **(env or {}),
                    },
                )
            )
        return number

    def add_servers(self, count: int, peers: str = "") -> int:
        flags = (f"--num-servers={count}", "--server-base-port=0", f"--initial-peers={peers or self.peers}")
        return self.launch("start_servers.py", *flags)

    def expect(self, number: int, code: int) -> None:
        """A launcher shall end otherwise than it was to."""
        self._codes[number] = code

    @contextmanager
    def launchers_held(self) -> Iterator[None]:
        """Launchers are stopped: what dies meanwhile is started again afterwards."""
        running = [launcher for launcher in self._launchers if launcher.poll() is None]
        for launcher in running:
            launcher.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for launcher in running:
                launcher.send_signal(signal.SIGCONT)

    def launcher(self, number: int) -> subprocess.Popen[bytes]:
        return self._launchers[number]

    def said(self, launcher: int) -> str:
        """What a launcher has printed."""
        return self._output(launcher).read_text(errors="replace")

    def all_said(self) -> str:
        """What all launchers have printed."""
        return "".join(self.said(number) for number in range(len(self._launchers)))

    def _output(self, launcher: int) -> Path:
        return self._folder / f"launcher_{launcher}.txt"

    # who is who

    def processes(self) -> list[psutil.Process]:
        """All live processes under the launchers."""
        found = []
        for launcher in self._launchers:
            try:
                parent = psutil.Process(launcher.pid)
                family = [parent, *parent.children(recursive=True)]
            except psutil.Error:
                continue
            found += [process for process in family if _lives(process)]
        self.seen.update({process.pid: process for process in found})
        return found

    def pids(self, name: str) -> list[int]:
        """PIDs of roles by what their title begins with: `server front.0.0.0`, `trainer`, `monitor`."""
        pattern = re.compile(rf"distqat {re.escape(name)}(?= |$)")
        found = []
        for process in self.processes():
            try:
                cmdline = process.cmdline()
                if pattern.match(" ".join(cmdline)) and not _is_warm(process):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return sorted(found)

    def pid(self, name: str) -> int:
        """The only one of that name."""
        return until(lambda: self._only(name), f"one process of the name {name!r}")

    def _only(self, name: str) -> int | None:
        pids = self.pids(name)
        return pids[0] if len(pids) == 1 else None

    def began(self, uid: str) -> float:
        """When the process that holds a slot was started, on the wall clock."""
        return self.seen[self.pid(f"server {uid}")].create_time()

    def alive(self, pids: list[int]) -> list[int]:
        """Those that still run."""
        return [pid for pid in pids if _lives(self.seen[pid])]

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> float:
        """Signal a process of this run; when that was, on the wall clock."""
        self.processes()
        assert pid in self.seen
        self.sweeps |= number == signal.SIGKILL
        os.kill(pid, number)
        return time.time()

    def arm(self, pid: int, text: str) -> None:
        """Have a process of this run pass into a failpoint, `name:action@hit`; hits count from now on."""
        self.sweeps |= "kill9" in text
        fresh = self._orders / f".{pid}"
        fresh.write_text(text)
        fresh.replace(self._orders / str(pid))

    def fired(self, pid: int) -> bool:
        """Whether the failpoint of that process has acted."""
        return (self._orders / f"{pid}.fired").exists()

    # what they did

    def records(self, pattern: str, event: str) -> list[dict[str, Any]]:
        """Metrics of one kind in order of time. A last line may be half written."""
        found = []
        for path in (self.logs / "metrics").glob(pattern):
            for line in path.read_text().split("\n")[:-1]:
                if line.endswith("}"):
                    found.append(json.loads(line))
        return sorted((r for r in found if r["event"] == event), key=lambda record: record["time"])

    def steps(self, since: float = 0.0, through: str = "") -> list[dict[str, Any]]:
        """Applied steps after a moment, over a replica if one is named."""
        steps = self.records("trainer_*.jsonl", "step")
        return [s for s in steps if s["time"] > since and (not through or through in s["route"])]

    def next_step(self, since: float, pipeline: int | None = None) -> float:
        """Seconds from a moment to the next applied step, on one pipeline if it is named."""

        def first() -> dict[str, Any] | None:
            steps = (s for s in self.steps(since) if pipeline is None or s["pipeline"] == pipeline)
            # A step that was answered before the fault may be written after it.
            return next((s for s in steps if s["time"] - s["seconds"] > since or s["seconds"] > 0.5), None)

        return float(until(first, "the next applied step")["time"]) - since

    def committed(self, stage: str) -> int:
        """The newest committed round."""
        rounds = [
            r["round"]
            for r in self.records("client.jsonl", "round")
            if r["stage"] == stage and r["committed"]
        ]
        return max(rounds, default=0)

    def goes_on(self, rounds: int = 2) -> None:
        """Every stage commits some more rounds, together, and all that committed agree."""
        until(lambda: all(self.together(stage) for stage in STAGES), "rounds with two members")
        before = {stage: self.committed(stage) for stage in STAGES}
        until(lambda: all(self.committed(s) >= before[s] + rounds for s in STAGES), f"{rounds} more rounds")
        self.check_digests()

    def together(self, stage: str) -> bool:
        """Whether the last round of a stage had two members."""
        rounds = [r for r in self.records("client.jsonl", "round") if r["stage"] == stage and r["committed"]]
        return bool(rounds) and rounds[-1]["members"] == 2

    def check_digests(self) -> None:
        """I1: after every round the members hold the digest that the log has."""
        held: dict[tuple[str, int], set[str]] = defaultdict(set)
        for record in self.records("server_*.jsonl", "round"):  # first: what they hold was logged before
            if record["committed"]:
                held[record["uid"].partition(".")[0], record["round"]].add(record["digest"])
        logged: dict[tuple[str, int], set[str]] = defaultdict(set)  # more than one: another generation
        for entry in self.log_entries("round", "restart"):
            logged[entry["stage"], entry["round"]].add(entry["digest"])
        assert held
        for key, digests in held.items():
            assert digests <= logged[key], key

    def check_ledger(self) -> None:
        """I2, once all have ended: sent = applied + skipped + aborted + lost + rolled back at every stage."""
        trainers, servers = read_records(self.logs, "trainer"), read_records(self.logs, "server")
        of_runs = [record for record in servers if record.get("tenancy")]
        closed = {record["peer"] for record in of_runs if record["event"] == "closed"}
        ledger = check_ledger(trainers, servers, {record["peer"] for record in of_runs} - closed)
        print({stage: asdict(each) for stage, each in ledger.stages.items()})
        assert ledger.balanced, "\n".join(map(str, ledger.problems))

    def log_entries(self, *kinds: str) -> list[dict[str, Any]]:
        """Entries of the commit log, and of one that was moved away; a last line may be half written."""
        logs = sorted(self.logs.glob("commit_log*.jsonl"), key=lambda path: path.stat().st_ctime)
        whole = "".join(path.read_text().rpartition("\n")[0] + "\n" for path in logs)
        entries = [json.loads(line) for line in whole.splitlines() if line]
        return [entry for entry in entries if entry["kind"] in kinds]

    # the end

    def last_lines(self, count: int = 12) -> str:
        """The end of every role's log: what each was doing when a test gave up waiting."""
        logs = sorted(self.logs.glob("*.log"))
        return "\n".join(
            f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-count:])
            for log in logs
        )

    def check_nothing_is_left(self) -> None:
        until(lambda: not [p for p in self.seen.values() if _lives(p)], "all processes ended", 5.0)
        until(lambda: not _marked(self.runtime), "no process of this run is left", 5.0)
        if self.sweeps:
            sweep_dead_sockets(self.runtime / "distqat")
        assert [path.name for path in (self.runtime / "distqat").glob("*.sock")] == []
        assert set(Path("/dev/shm").iterdir()) <= self._shared_memory

    def _end(self) -> list[int]:
        for launcher in reversed(self._launchers):
            if launcher.poll() is None:
                launcher.terminate()
        codes = []
        for launcher in self._launchers:
            try:
                codes.append(launcher.wait(timeout=20))
            except subprocess.TimeoutExpired:
                launcher.kill()
                codes.append(launcher.wait())
        return codes


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _is_warm(process: psutil.Process) -> bool:
    """A forkserver has the title of its launcher before it gets its own."""
    return "forkserver" in " ".join(process.cmdline())


def _marked(runtime: Path) -> list[int]:
    """Processes whose environment names our runtime folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("XDG_RUNTIME_DIR") == str(runtime) and _lives(process):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
