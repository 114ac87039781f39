"""Roles and owners that test_process.py starts as real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil

from distqat.errors import ConfigError, RoleError
from distqat.process import (
    ForkServerClient,
    RoleCommand,
    RoleProcess,
    Supervisor,
    announce_ready,
    notice,
    run_role,
)
from distqat.process.role_command import READY_FD

ROOT = Path(__file__).parents[2]
HERE = "tests.integration.process_scene"


def command(kind: str, name: str = "server 0", log: Path | None = None, **options: object) -> RoleCommand:
    """A role of this file; `kind` is one of its functions."""
    return RoleCommand(name, f"{HERE}:{kind}", log_path=log, **options)  # type: ignore[arg-type]


def serve(argv: Sequence[str]) -> int:
    """A well-behaved role with a daemon, which it ends itself when it is asked to stop."""

    async def role(stop: asyncio.Event) -> int:
        daemon = await asyncio.create_subprocess_exec("sleep", "1000")
        announce_ready({"pids": [os.getpid(), daemon.pid], "argv": list(argv)})
        await stop.wait()
        print("asked to stop", flush=True)
        daemon.terminate()
        await daemon.wait()
        return 0

    return run_role("server", role)


def stubborn(argv: Sequence[str]) -> int:
    """Goes on whatever it is asked."""
    alone = READY_FD not in os.environ

    async def role(stop: asyncio.Event) -> int:
        daemon = await asyncio.create_subprocess_exec("sleep", "1000")
        announce_ready({"pids": [os.getpid(), daemon.pid]})
        if alone:
            print(json.dumps({"pids": [os.getpid(), daemon.pid]}), flush=True)
        await stop.wait()
        print("asked to stop", flush=True)
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    return run_role("server", role, grace_s=float(argv[0]) if argv else 3600.0)


def crash(argv: Sequence[str]) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def crash_until_third(argv: Sequence[str]) -> int:
    """Crashes twice and then finishes; counts in the file $RUNS."""
    runs = Path(os.environ["RUNS"])
    with runs.open("a") as file:
        file.write("x")
    if len(runs.read_text()) < 3:
        raise ZeroDivisionError("a crash with a traceback")
    return 0


def tell(argv: Sequence[str]) -> int:
    """Says what it was given."""
    import random

    announce_ready(
        {
            "argv": sys.argv,
            "env": {name: os.environ.get(name) for name in ("SEEN", "GONE", "OMP_NUM_THREADS")},
            "random": random.random(),
            "group": os.getpgid(0) == os.getpid() == os.getsid(0),
            "ignored": [s.name for s in signal.valid_signals() if signal.getsignal(s) is signal.SIG_IGN],
            "descriptors": len(os.listdir("/proc/self/fd")) - 1,
            "title": Path("/proc/self/cmdline").read_text().rstrip("\0"),
        }
    )
    return 7


def compute(argv: Sequence[str]) -> int:
    """Tells whether parallel work runs in a fork of a process that has imported everything."""
    import torch

    x = torch.ones(1000, 1000)
    total = float((x @ x).sum())
    announce_ready(
        {
            "total": total,
            "torch_threads": torch.get_num_threads(),
            "parent_threads": len(os.listdir(f"/proc/{os.getppid()}/task")),
            "warm": "torch._dynamo" in sys.modules and "hivemind" in sys.modules,
        }
    )
    return 0


def daemon(argv: Sequence[str]) -> int:
    """Runs the engine's real daemon."""

    async def role(stop: asyncio.Event) -> int:
        from hivemind.p2p import P2P

        p2p = await P2P.create(host_maddrs=["/ip4/127.0.0.1/tcp/0"], auto_nat=False, nat_port_map=False)
        daemons = [child.pid for child in psutil.Process().children()]
        print(json.dumps({"pids": [os.getpid(), *daemons]}), flush=True)
        await stop.wait()
        await p2p.shutdown()
        return 0

    return run_role("server", role)


def misconfigured(argv: Sequence[str]) -> int:
    async def role(stop: asyncio.Event) -> int:
        raise ConfigError("data.precison: no such field;\n did you mean 'precision'?")

    return run_role("server", role)


def portless(argv: Sequence[str]) -> int:
    async def role(stop: asyncio.Event) -> int:
        raise RoleError("port 50500 is in use by PID 1")

    return run_role("server", role)


def talkative(argv: Sequence[str]) -> int:
    """Gives a notice, and ends with an error that nobody foresaw."""

    async def role(stop: asyncio.Event) -> int:
        notice("the disk is nearly full")
        raise ZeroDivisionError("a division\nby zero")

    return run_role("server", role)


def client(argv: Sequence[str]) -> int:
    """A role that starts roles of its own, from a fork_server that is forked from it as it is."""
    fork_server = ForkServerClient.start(())

    async def role(stop: asyncio.Event) -> int:
        trainer = await fork_server.spawn(command("serve", "trainer 0"))
        said = await trainer.ready(20)
        announce_ready({"pids": [os.getpid(), fork_server.pid, *said["pids"]]})
        await stop.wait()
        trainer.terminate()
        code = await trainer.wait()
        await fork_server.close()
        return code

    return run_role("client", role)


def own(way: str, kind: str) -> int:
    """A launcher: tells the PIDs of its whole tree in a line, then supervises until it is asked to stop."""
    if way == "exec":  # a process with threads is not forked
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    fork_server = ForkServerClient.start(())

    async def launcher(stop: asyncio.Event) -> int:
        reports = []

        def on_start(role: RoleProcess) -> None:
            reports.append(asyncio.ensure_future(report(role)))

        async def report(role: RoleProcess) -> None:
            said = await role.ready(20)
            print(
                json.dumps({"role": role.pid, "fork_server": fork_server.pid, "pids": said["pids"]}),
                flush=True,
            )

        supervisor = Supervisor(fork_server, on_start=on_start)
        kept = asyncio.ensure_future(
            supervisor.keep(command(kind, f"{kind} 0" if kind == "client" else "server 0"))
        )
        asked = asyncio.ensure_future(stop.wait())
        await asyncio.wait({kept, asked}, return_when=asyncio.FIRST_COMPLETED)
        await supervisor.stop(5.0)
        code = await kept
        await fork_server.close()
        print("over", code, flush=True)
        return code

    return run_role("launcher", launcher)


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(ROOT)
    sys.path.insert(0, str(ROOT))
    what, *rest = sys.argv[1:]
    sys.exit(own(*rest) if what == "own" else globals()[what](rest))
