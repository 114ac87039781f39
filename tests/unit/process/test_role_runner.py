from __future__ import annotations

import json
import os

import pytest

from distqat.process import launcher_notices
from distqat.process.launcher_notices import announce_ready
from distqat.process.role_runner import StopSignals


def test_the_second_signal_means_at_once() -> None:
    signals = StopSignals(gesture_s=0.0)
    assert [signals.is_second(1.0), signals.is_second(1.0)] == [False, True]


def test_pkill_and_the_launcher_are_one_gesture() -> None:
    signals = StopSignals(gesture_s=0.5)
    assert [signals.is_second(now) for now in (7.0, 7.1, 7.49, 7.6)] == [False, False, False, True]


@pytest.fixture(autouse=True)
def no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipes of these tests are closed again, and must not be used later."""
    monkeypatch.setattr(launcher_notices, "_pipe", launcher_notices._Pipe())


def test_ready_is_one_line_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setenv("DISTQAT_READY_FD", str(writing))
    announce_ready({"role": "monitor", "peers": ["/ip4/127.0.0.1"]})
    announce_ready({"role": "monitor"})
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        lines = pipe.read().splitlines()
    body = {"role": "monitor", "peers": ["/ip4/127.0.0.1"]}
    assert [json.loads(line) for line in lines] == [{"event": "ready", "body": body}]


def test_ready_without_anybody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTQAT_READY_FD", raising=False)
    announce_ready({})
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setenv("DISTQAT_READY_FD", str(writing))
    announce_ready({"role": "monitor"})
