"""As much of the Hugging Face hub as streaming asks for, on loopback; and processes that read from it."""

from __future__ import annotations

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

SHA = "0" * 39 + "1"
TOKEN = "hf_stand_in"

PRELUDE = """
import json, sys
from distqat.data.options import DataOptions
from distqat.data.open_source import open_source
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
                folders = sorted({path.partition("/")[0] for path in files if "/" in path})
                answer += [{"type": "directory", "oid": "b" * 40, "size": 0, "path": f} for f in folders]
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
