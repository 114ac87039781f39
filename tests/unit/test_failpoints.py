"""Failpoints: off by default, due at their hit, and what cannot be armed is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distqat.errors import ConfigError
from distqat.failpoints import ENVIRONMENT_VARIABLE, Failpoints, Orders


def test_an_action_is_due_once_at_its_hit() -> None:
    points = Failpoints.parse("a:kill9@3, b.c:error,")
    assert [points.passage("a") for _ in range(5)] == [None, None, "kill9", None, None]
    assert [points.passage("b.c") for _ in range(2)] == ["error", None]
    assert points.passage("other") is None
    assert "other" not in points.hits


def test_an_action_may_be_due_from_a_hit_on() -> None:
    points = Failpoints.parse("a:raise@2+")
    assert [points.passage("a") for _ in range(4)] == [None, "raise", "raise", "raise"]


@pytest.mark.parametrize(
    "text", ["a", "a:burn", "a:kill9@", "a:kill9@0", "a:kill9@-1", "a:kill9@x", ":error", "@3"]
)
def test_what_cannot_be_armed_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=ENVIRONMENT_VARIABLE):
        Failpoints.parse(text)


def test_nothing_is_armed_by_default() -> None:
    assert Failpoints.parse("").armed == {}


def test_orders_arm_a_process_that_runs(tmp_path: Path) -> None:
    orders, mine = Orders(tmp_path), tmp_path / str(os.getpid())
    assert orders.passage("a") is None
    mine.write_text("a:exit@2")
    assert [orders.passage(name) for name in ("a", "b", "a", "a")] == [None, None, "exit", None]
    assert not mine.exists()
    assert (tmp_path / f"{os.getpid()}.fired").read_text() == "a:exit@2"
    mine.write_text("a:exit@2")  # the same again: counted anew
    assert [orders.passage("a") for _ in range(2)] == [None, "exit"]


def pass_twice(armed: str) -> subprocess.CompletedProcess[str]:
    loop = "for n in (1, 2):\n    failpoint('x.y')\n    print(n, flush=True)"
    code = f"from distqat.failpoints import failpoint\n{loop}"
    environment = {**os.environ, ENVIRONMENT_VARIABLE: armed}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize(
    ("action", "returncode"),
    [("kill9", -signal.SIGKILL), ("exit", 1), ("error", 1), ("raise", 1), ("full", 1)],
)
def test_each_action_fires_at_its_hit_and_leaves_proof(action: str, returncode: int) -> None:
    ended = pass_twice(f"x.y:{action}@2")
    assert ended.returncode == returncode
    assert ended.stdout == "1\n"
    assert f"failpoint x.y: {action}" in ended.stderr
    assert ("FailpointError" in ended.stderr) == (action == "error")
    assert ("No space left on device" in ended.stderr) == (action == "full")


def test_stop_goes_on_after_sigcont() -> None:
    code = "from distqat.failpoints import failpoint\nfailpoint('x')\nprint('went on')"
    environment = {**os.environ, ENVIRONMENT_VARIABLE: "x:stop"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        os.kill(process.pid, signal.SIGCONT)
        output, _ = process.communicate(timeout=30)
    assert output == b"went on\n"
    assert process.returncode == 0
