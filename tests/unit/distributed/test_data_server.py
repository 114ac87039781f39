"""What the data server says when it serves: the shapes of its first batch."""

from __future__ import annotations

import asyncio
import json
import os
from argparse import Namespace
from pathlib import Path

import pytest

from distqat.config import Config
from distqat.distributed import data_server
from distqat.distributed.role_main import RoleStart
from distqat.process import RoleParameters, launcher_notices
from distqat.process.role_command import READY_FD


async def test_it_is_ready_when_its_first_batch_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(launcher_notices, "_pipe", launcher_notices._Pipe())
    monkeypatch.setenv(READY_FD, str(writing))
    config = Config.model_validate(
        {"data": {"img_size": 8, "num_channels": 1}, "diloco": {"batch_size_per_step": 5}}
    )
    told = RoleParameters(data_socket=str(tmp_path / "data.sock"))
    start, stop = RoleStart(config, Namespace(), told), asyncio.Event()
    serving = asyncio.ensure_future(data_server.serve(start, stop))
    said = json.loads(await asyncio.to_thread(os.read, reading, 1 << 16))["body"]
    os.close(reading)
    assert (tmp_path / "data.sock").is_socket()
    assert said["batch"] == {
        "inputs": {"x": ["float32", [5, 1, 8, 8]]},
        "labels": {"y": ["int64", [5]]},
    }
    stop.set()
    assert await asyncio.wait_for(serving, 10) == 0
    assert not (tmp_path / "data.sock").exists()
