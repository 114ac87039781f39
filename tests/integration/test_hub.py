"""Hub data sets from a stand-in on loopback.

The Hugging Face libraries read the hub's address when they are imported, so each case is a process.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL", reason="Pillow is not installed")

SHA = "0" * 39 + "1"
TOKEN = "hf_stand_in"
TRAIN, HELD, HELDOUT_SAMPLES = 40, 10, 1000

PRELUDE = """
import json, sys
from distqat.data.options import DataOptions
from distqat.data.source import open_source
from distqat.tasks import TaskSettings, get_task
def options(**kw):
    return DataOptions.model_validate({"img_size": 8, "shuffle_buffer": 7, "num_channels": 1, **kw})
def labels(items):
    return [(i.epoch, i.index, i.sample["label"]) for i in items]
def drain(source, count):
    items = []
    while len(items) < count:
        items += source.take(count - len(items))
    return items
"""


def parquet(first: int, count: int) -> bytes:
    """Images of one grey each, whose value and label tell the sample."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def png(value: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("L", (8, 8), value % 256).save(buffer, "PNG")
        return buffer.getvalue()

    schema = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")}).arrow_schema
    numbers = range(first, first + count)
    images = [{"bytes": png(i), "path": None} for i in numbers]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"img": images, "label": list(numbers)}, schema=schema), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def repositories() -> dict[str, dict[str, bytes]]:
    small = {f"data/train-{i:05}-of-00002.parquet": parquet(20 * i, 20) for i in range(2)}
    held = {"data/test-00000-of-00001.parquet": parquet(TRAIN, HELD)}
    alone = {"data/train-00000-of-00001.parquet": parquet(0, HELDOUT_SAMPLES + 20)}
    return {"acme/small": {**small, **held}, "acme/alone": alone}


class StandIn(BaseHTTPRequestHandler):
    """As much of the hub as streaming asks for: repository, tree, files with ranges."""

    protocol_version = "HTTP/1.1"
    repositories: dict[str, dict[str, bytes]] = {}  # noqa: RUF012 - set per server, on a subclass
    seen: list[tuple[str, str | None]] = []  # noqa: RUF012
    broken: list[str] = []  # noqa: RUF012 - answers 503 for paths that contain one of these

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.path, self.headers.get("Authorization")))
        parts = self.path.partition("?")[0].strip("/").split("/")
        if any(mark in self.path for mark in self.broken):
            return self.reply(503, b"")
        if parts[:2] == ["api", "datasets"] and (files := self.repositories.get("/".join(parts[2:4]))):
            return self.api("/".join(parts[2:4]), files, parts[4:])
        if parts[0] == "datasets" and (files := self.repositories.get("/".join(parts[1:3]))):
            if (body := files.get("/".join(parts[5:]))) is not None:
                return self.file(body)
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_POST = do_GET

    def api(self, name: str, files: dict[str, bytes], rest: list[str]) -> None:
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": path} for path in files]
            answer: Any = {"id": name, "sha": SHA, "private": False, "tags": [], "siblings": siblings}
        else:
            folder = "/".join(rest[2:])
            answer = [
                {"type": "file", "oid": "a" * 40, "size": len(body), "path": path}
                for path, body in files.items()
                if path.startswith(folder)
            ]
            if not folder:
                answer.append({"type": "directory", "oid": "b" * 40, "size": 0, "path": "data"})
        self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def file(self, body: bytes) -> None:
        headers = {"ETag": '"x"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            return self.reply(200, body, headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        stop = min(int(last or len(body)) + 1, len(body))
        headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(body)}"
        return self.reply(206, body[int(first) : stop], headers)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        return None


@pytest.fixture
def hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[type[StandIn]]:
    handler = type("Hub", (StandIn,), {"repositories": repositories, "seen": [], "broken": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    handler.address = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def run(code: str, endpoint: str, home: Path) -> Any:
    """Run `code` after the prelude in a process of its own; what it prints last is its result, as JSON."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], env=environment, capture_output=True, text=True, timeout=55
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_stream_is_repeatable_and_complete(hub: Any, tmp_path: Path) -> None:
    code = """
name = {"dataset_name": "acme/small"}
a, b, other = (open_source(options(**name), seed=s) for s in (1, 1, 2))
first = labels(drain(a, 80))
state = a.state()
later = labels(drain(a, 20))
positions = []
for at in ({"epoch": 0, "index": 0}, {"epoch": 0, "index": 11}, {"epoch": 1, "index": 39}, state):
    b.restore(at)
    positions.append(labels(drain(b, 5)))
task = get_task("cv", TaskSettings(num_classes=100, num_channels=1, img_size=8))
b.restore({"epoch": 0, "index": 0})
pixels = task.collate([i.sample for i in drain(b, 3)]).inputs["x"][:, 0, 4, 4]
grey = [round((v + 1) * 127.5) for v in pixels.tolist()]
print(json.dumps([first, later, labels(drain(other, 40)), positions, state, a.order,
                  [s["label"] for s in a.heldout()], grey]))
"""
    first, later, other, positions, state, order, held, grey = run(code, hub.address, tmp_path)
    assert [row[:2] for row in first] == [[e, i] for e in range(2) for i in range(TRAIN)]
    for epoch in (first[:TRAIN], first[TRAIN:], other):
        assert sorted(row[2] for row in epoch) == list(range(TRAIN))
    assert len({tuple(row[2] for row in epoch) for epoch in (first[:TRAIN], first[TRAIN:], other)}) == 3
    assert positions[:2] == [first[0:5], first[11:16]]
    assert positions[2][:1] == first[79:80]
    assert positions[3] == later[:5]
    assert state == {"epoch": 1, "index": 40}
    assert order == f"acme/small/default/train@{SHA} seed=1 buffer=7"
    assert held == list(range(TRAIN, TRAIN + HELD))
    assert grey == [row[2] for row in first[:3]]
    assert {authorization for _, authorization in hub.seen} == {f"Bearer {TOKEN}"}


def test_without_a_test_split_the_first_samples_are_held_out(hub: Any, tmp_path: Path) -> None:
    code = """
source = open_source(options(dataset_name="acme/alone"), seed=1)
print(json.dumps([[s["label"] for s in source.heldout()], labels(drain(source, 21))]))
"""
    held, rows = run(code, hub.address, tmp_path)
    assert held == list(range(HELDOUT_SAMPLES))
    assert sorted(row[2] for row in rows[:20]) == list(range(HELDOUT_SAMPLES, HELDOUT_SAMPLES + 20))
    assert rows[20][:2] == [1, 0]


WRONG = """
from distqat.errors import DataError
said = {}
for key, kw in json.loads(%r).items():
    try:
        drain(open_source(options(**kw), seed=1), 1)
    except DataError as error:
        said[key] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""


def test_wrong_names_are_explained(hub: Any, tmp_path: Path) -> None:
    cases = {
        "name": {"dataset_name": "acme/none"},
        "path": {"dataset_name": "acme/../secret"},
        "config": {"dataset_name": "acme/small", "dataset_config": "nope"},
        "split": {"dataset_name": "acme/small", "dataset_split": "nope"},
    }
    said = run(WRONG % json.dumps(cases), hub.address, tmp_path)
    assert {kind for kind, _ in said.values()} == {"DataError"}
    assert "HF_TOKEN" in said["name"][1]
    assert "is no name of a data set" in said["path"][1]
    assert "Available: ['default']" in said["config"][1]
    assert "known: train, test" in said["split"][1]


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://stand-in.invalid"])
def test_a_hub_out_of_reach_names_the_embedded_alternative(endpoint: str, tmp_path: Path) -> None:
    cases = {"hub": {"dataset_name": "acme/small"}, "digits": {"dataset_name": "digits"}}
    said = run(WRONG % json.dumps(cases), endpoint, tmp_path)
    assert list(said) == ["hub"]  # the embedded set asks nobody
    kind, text = said["hub"]
    assert kind == "HubUnavailable"
    assert "'digits'" in text
    assert "acme/small" in text
    assert "\n" not in text


def test_a_hub_that_fails_is_out_of_reach(hub: Any, tmp_path: Path) -> None:
    hub.broken.append("/api/")
    said = run(WRONG % json.dumps({"hub": {"dataset_name": "acme/small"}}), hub.address, tmp_path)
    assert said["hub"][0] == "HubUnavailable"
