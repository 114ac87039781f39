"""Sinks: JSON lines that parse, services that cannot hurt."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distqat.metrics import Fanout, JsonLines, NullSink, open_sinks
from distqat.metrics import sink as sink_module
from distqat.metrics.background_sink import BackgroundSink
from distqat.metrics.record_values import numbers
from distqat.metrics.services import WandbRun


class Recorder:
    def __init__(self) -> None:
        self.records: list[Mapping[str, Any]] = []
        self.closed = 0

    def write(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def close(self) -> None:
        self.closed += 1


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "trainer_0.jsonl"
    sink = JsonLines(path, "trainer_0", clock=lambda: 12.5)
    sink.write(
        {"event": "step", "loss": 0.5, "nested": {"nan": math.nan, "list": [math.inf, 1]}, "path": path}
    )
    head = {"time": 12.5, "role": "trainer_0", "event": "step", "loss": 0.5}
    assert lines(path) == [{**head, "nested": {"nan": None, "list": [None, 1]}, "path": str(path)}]  # flushed
    sink.close()
    sink.close()
    sink.write({"late": 1})
    again = JsonLines(path, "trainer_0")
    again.write({"step": 2})
    again.close()
    assert [line.get("step") for line in lines(path)] == [None, 2]


def test_a_full_disk_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is not there")
    sink = JsonLines(Path("/dev/full"), "client")
    for step in range(3):
        sink.write({"step": step})
    sink.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "training goes on" in caplog.text


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    sink = open_sinks(tmp_path / "file", "client")
    sink.write({"step": 1})
    sink.close()
    assert "cannot be written" in caplog.text


def test_fanout_and_nothing() -> None:
    both = [Recorder(), Recorder()]
    sink = Fanout([*both, NullSink()])
    sink.write({"a": 1})
    sink.close()
    assert [(each.records, each.closed) for each in both] == [([{"a": 1}], 1)] * 2


def test_numbers_of_a_record() -> None:
    record = {"step": 3, "uid": "front.0.0.0", "ok": True, "nan": math.nan, "times": {"idle": 0.5}}
    assert dict(numbers(record, "step/")) == {"step/step": 3.0, "step/ok": 1.0, "step/times/idle": 0.5}


class TestBackground:
    def test_everything_arrives_in_order_before_the_end(self) -> None:
        slow = Recorder()
        sink = BackgroundSink(lambda: slow, name="test")
        for step in range(100):
            sink.write({"step": step})
        sink.close()
        sink.close()
        assert [record["step"] for record in slow.records] == list(range(100))
        assert slow.closed == 1

    def test_a_stalled_service_neither_blocks_nor_keeps_us(self, caplog: pytest.LogCaptureFixture) -> None:
        go = threading.Event()

        def stalled() -> Recorder:
            go.wait(20)
            return Recorder()

        sink = BackgroundSink(stalled, name="test", size=2, close_s=0.01)
        for step in range(10):
            sink.write({"step": step})
        sink.close()
        go.set()
        assert [record.message for record in caplog.records] == ["test is slow; some metrics are dropped"]

    @pytest.mark.parametrize("where", ["open", "write", "close"])
    def test_an_error_is_told_once(self, where: str, caplog: pytest.LogCaptureFixture) -> None:
        class Broken(Recorder):
            def write(self, record: Mapping[str, Any]) -> None:
                if where == "write":
                    raise RuntimeError("no service")

            def close(self) -> None:
                raise RuntimeError("no service")

        def open_broken() -> Broken:
            if where == "open":
                raise RuntimeError("no service")
            return Broken()

        sink = BackgroundSink(open_broken, name="test")
        for step in range(5):
            sink.write({"step": step})
        sink.close()
        assert len(caplog.records) == 1
        assert "no service" in caplog.text


class FakeWandb(types.ModuleType):
    """The part of wandb that is used; offline only where `reachable` is false."""

    def __init__(self, *, reachable: bool) -> None:
        super().__init__("wandb")
        self.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
        self.Settings = dict
        self.reachable = reachable
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, float]] = []
        self.finished = 0

    def init(self, **arguments: Any) -> Any:
        self.inits.append(arguments)
        if arguments["mode"] == "online" and not self.reachable:
            raise self.errors.Error("no network")
        return types.SimpleNamespace(log=self.logged.append, finish=self._finish)

    def _finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize(
    ("key", "reachable", "modes"),
    [
        (None, True, ["offline"]),
        ("environment", True, ["online"]),
        ("login", True, ["online"]),
        ("login", False, ["online", "offline"]),
    ],
)
def test_wandb_is_offline_without_key_or_network(
    key: str | None, reachable: bool, modes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb(reachable=reachable)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if key == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "secret-key")
    elif key == "login":
        (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret-key\n")
        (tmp_path / "netrc").chmod(0o600)
    run = WandbRun("distqat", "trainer_0", tmp_path / "resnet18")
    run.write({"event": "step", "loss": 0.5, "route": ["front.0.0.0"]})
    run.close()
    assert [arguments["mode"] for arguments in wandb.inits] == modes
    assert wandb.logged == [{"step/loss": 0.5}]
    assert wandb.finished == 1
    assert "secret" not in repr(wandb.inits)
    assert "config" not in wandb.inits[0]


def test_without_the_package_it_is_said_and_lines_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sink_module, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO):
        sink = open_sinks(tmp_path, "client", "distqat")
    sink.write({"step": 1})
    sink.close()
    assert caplog.text.count("W&B is not installed") == 1
    assert lines(tmp_path / "metrics" / "client.jsonl")[0]["step"] == 1


def test_wandb_stands_behind_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb(reachable=True)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(sink_module, "find_spec", lambda name: object() if name == "wandb" else None)
    sink = open_sinks(tmp_path, "client", "distqat")
    sink.write({"event": "round", "round": 4})
    sink.close()
    assert wandb.logged == [{"round/round": 4.0}]
