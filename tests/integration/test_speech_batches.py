"""Recordings through the data server: batches of one count whose sizes are far apart share its slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from distqat.data.embedded import EmbeddedSource
from distqat.data.serving.batch_client import DataClient
from distqat.data.serving.batch_server import DataServer
from distqat.tasks import TaskSettings, get_task

RATE, LONGEST = 1000, 30.0
OPTIONS = {"sampling_rate": RATE, "max_seconds": LONGEST, "pad_seconds": 0.1}


def recording(length: int) -> dict[str, Any]:
    sound = np.sin(np.arange(length) / 7).astype(np.float32)
    return {"audio": {"array": sound, "sampling_rate": RATE}, "text": "a" * max(1, length // 40)}


async def test_the_longest_batch_fits_behind_the_shortest(tmp_path: Path) -> None:
    lengths = [200, 300, int(LONGEST * RATE), 5000, 100, int(LONGEST * RATE)]
    source = EmbeddedSource("sounds", [recording(n) for n in lengths], [], seed=0)
    source._order = list(range(len(lengths)))
    task = get_task("speech", TaskSettings(options=OPTIONS))
    server = DataServer(source, task, workers=1)
    await server.start(tmp_path / "run" / "data.sock")
    client = await DataClient.connect(tmp_path / "run" / "data.sock", trainer="0", count=2, slots=3)
    for first in (0, 2, 4):
        lease = await client.next(2)
        inputs = lease.batch.inputs
        expected = sorted(lengths[first : first + 2], reverse=True)
        assert inputs["lengths"].tolist() == expected
        assert inputs["x"].shape[1] == -(-expected[0] // 100) * 100
        assert lease.batch.labels["y_lengths"].tolist() == [max(1, n // 40) for n in expected]
        await client.consumed(lease.batch_id)
    await client.close()
    await server.stop()
