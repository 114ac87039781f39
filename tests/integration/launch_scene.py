"""The real launchers over roles of this file: `python launch_scene.py servers|trainer_client FLAGS`."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from distqat.errors import ConfigError
from distqat.process import RoleParameters, announce_ready, claim_port, notice, run_role

ROOT = Path(__file__).parents[2]
PEER = "/ip4/127.0.0.1/tcp/50000/p2p/QmTest"


def value_of(argv: Sequence[str], flag: str) -> str:
    return next(word.partition("=")[2] for word in argv if word.startswith(f"{flag}="))


def server(argv: Sequence[str]) -> int:
    """Claims its port as a server does; ends as $SCENE says."""

    told = RoleParameters.take()

    async def role(stop: asyncio.Event) -> int:
        wanted = int(value_of(argv, "--server-base-port"))
        port = claim_port("127.0.0.1", wanted, given=True, claimed=told.claimed_port)
        print("port", port.port, "index", told.server_index, flush=True)
        if os.environ.get("SCENE") == "finish":
            return 0
        if os.environ.get("SCENE") == "refuse":
            raise ConfigError("seed: the run has 7; start the server with --seed 7")
        await stop.wait()
        return 0

    return run_role("server", role)


def monitor(argv: Sequence[str]) -> int:
    async def role(stop: asyncio.Event) -> int:
        crashed = Path(os.environ["SCENE_DIR"]) / "monitor_crashed"
        if os.environ.get("SCENE") == "crash" and not crashed.exists():
            crashed.touch()
            os.abort()
        announce_ready({"role": "monitor", "peers": [PEER]})
        await stop.wait()
        return 0

    return run_role("monitor", role)


def client(argv: Sequence[str]) -> int:
    async def role(stop: asyncio.Event) -> int:
        print("peers", value_of(argv, "--initial-peers"), flush=True)
        if os.environ.get("SCENE") == "refuse":
            notice("waiting for the data set, since 10 s")
            raise ValueError("label 'inf' of row 7")
        return 0

    return run_role("client", role)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = str(ROOT)
    launcher = importlib.import_module(f"distqat.launch.{sys.argv[1]}")
    roles = importlib.import_module("distqat.launch.launcher_roles")
    roles.entry_of = lambda kind: f"tests.integration.launch_scene:{kind}"
    launcher.PRELOAD = ()
    sys.exit(launcher.main(sys.argv[2:]))
