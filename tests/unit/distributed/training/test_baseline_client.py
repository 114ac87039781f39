"""The client of a baseline ends with what its trainer ended with."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.fakes.memory_directory import MemoryDirectory, MemorySwarm
from tests.fakes.memory_transport import MemoryNetwork, MemoryTransport

from distqat.config import Config
from distqat.distributed.client import Client
from distqat.errors import ConfigError
from distqat.metrics import NullSink
from distqat.process import RoleCommand, RoleParameters, RoleProcess


class Roles:
    """Stands where a fork server would: the data server serves, the trainer is refused."""

    async def spawn(self, command: RoleCommand) -> RoleProcess:
        serves = command.name == "data-server"
        role = RoleProcess(command, 7 + serves, lambda *_: role._on_event({"event": "exit", "status": 0}))
        if serves:
            role._on_event({"event": "ready", "body": {}})
        else:
            role._on_event({"event": "ended", "text": "no stage back", "kind": "final", "log": None})
            role._on_event({"event": "exit", "status": 2})
        return role


async def test_a_refused_trainer_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    config = Config(log_dir=str(tmp_path / "logs"))
    transport = MemoryTransport(MemoryNetwork(), "client")
    directory = MemoryDirectory(MemorySwarm(), "client", config.experiment_prefix, tuple(config.stages))

    async def lives() -> None:
        await asyncio.Event().wait()

    peer: Any = SimpleNamespace(
        transport=transport,
        directory=directory,
        host="",
        maddrs=(),
        identity=SimpleNamespace(peer="client"),
        lost_daemon=lives,
    )
    client = Client(config, [], peer, Roles(), NullSink(), RoleParameters(run_locally=True))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no stage back"):
        await asyncio.wait_for(client.run(asyncio.Event()), 30)
