"""hivemind's serializer with our guard: the bytes that end a process without it. In a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PREAMBLE = """
import msgpack
from distqat.swarm import hivemind_patches

def nested(depth, code):
    value = msgpack.packb(None)
    for _ in range(depth):
        value = msgpack.packb(msgpack.ExtType(code, value))
    return value

def in_lists(depth, code):
    value = msgpack.packb([])
    for _ in range(depth):
        value = msgpack.packb(msgpack.ExtType(code, b"\\x93\\x01\\x02" + value))
    return value
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    """Run python in a process of its own, so that a SIGSEGV is seen and not had."""
    code = PREAMBLE + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True, timeout=50
    )


def test_nested_extensions_raise_and_do_not_crash() -> None:
    ended = run(
        """
        hivemind_patches.install()
        hivemind_patches.install()
        from hivemind.utils.serializer import MSGPackSerializer
        from hivemind.dht.routing import DHTID
        from hivemind.dht.storage import DictionaryDHTValue

        bytes_of = [make(400, code) for make in (nested, in_lists) for code in (0x40, 0x50)]
        for raw in (*bytes_of, in_lists(17, 0x40), nested(20_000, 0x40)):
            try:
                MSGPackSerializer.loads(raw)
            except ValueError as error:
                print("refused", str(error)[:60])
            else:
                print("taken")
        # what is shallow still works, also right after a refusal, and in every thread
        value = ((1, (2, (3,))), "x")
        assert MSGPackSerializer.loads(MSGPackSerializer.dumps(value)) == value
        inner = DictionaryDHTValue()
        inner.store("key", b"value", 1e12)
        assert MSGPackSerializer.loads(MSGPackSerializer.dumps(inner)).get("key").value == b"value"
        print("fine")
        """
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "taken" not in lines, ended.stdout
    assert len(lines) == 7
    assert lines[-1] == "fine"


def test_the_bytes_do_crash_without_the_guard() -> None:
    """Otherwise the test above proves nothing. If this fails, hivemind was mended and the guard may go."""
    ended = run(
        """
        from hivemind.utils.serializer import MSGPackSerializer
        MSGPackSerializer.loads(nested(400, 0x40))
        print("survived")
        """
    )
    if ended.returncode == 0 or "RecursionError" in ended.stderr:
        pytest.fail(f"hivemind's serializer takes the bytes here: {ended.stdout}{ended.stderr[-300:]}")
    assert ended.returncode < 0, ended.stderr[-500:]
