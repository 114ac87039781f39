"""What hivemind needs before it meets hostile bytes or the death of its owner; `install()` before use.

Two faults were measured on hivemind 1.1.12 (docs/log.md): a msgpack extension type nested 400 deep ends the
process with SIGSEGV, and `p2pd` outlives an owner that was killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import signal
import sys
import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

MAX_EXTENSION_DEPTH = 16
_PR_SET_PDEATHSIG = 1
_installed = False


def install() -> None:
    """Patch hivemind once: depth in its serializer, expiry of what peers claim, a leash on its daemon."""
    global _installed
    if _installed:
        return
    _limit_extension_depth()
    _bound_claimed_expiry()
    _leash_daemon()
    logging.addLevelName(logging.WARNING, "WARNING")  # the import renamed it for the whole process
    _installed = True


def _limit_extension_depth() -> None:
    from hivemind.utils.serializer import MSGPackSerializer

    depth = threading.local()
    original = MSGPackSerializer._decode_ext_types.__func__

    def decode(cls: type, type_code: int, data: bytes) -> Any:
        level = getattr(depth, "level", 0)
        if level >= MAX_EXTENSION_DEPTH:
            raise ValueError(f"msgpack extension types nested more than {MAX_EXTENSION_DEPTH} deep")
        depth.level = level + 1
        try:
            return original(cls, type_code, data)
        finally:
            depth.level = level

    MSGPackSerializer._decode_ext_types = classmethod(decode)


def _bound_claimed_expiry() -> None:
    """A look-up ends at the first answer that claims to expire late enough, so the claim must be covered.

    hivemind checks the records inside an answer, not the answer's own expiry: one that says `inf` would end
    every search with whatever it holds. It may be no later than the latest of its checked records.
    """
    from hivemind.dht.protocol import DHTProtocol
    from hivemind.dht.storage import DictionaryDHTValue
    from hivemind.utils.timed_storage import ValueWithExpiration

    original = DHTProtocol.call_find

    def covered(entry: Any) -> Any:
        if entry is None or not isinstance(entry.value, DictionaryDHTValue):
            return entry
        latest = max((item.expiration_time for _, item in entry.value.items()), default=None)
        return None if latest is None else ValueWithExpiration(entry.value, latest)

    async def call_find(self: Any, peer: Any, keys: Any) -> Any:
        found = await original(self, peer, keys)
        return found and {key: (covered(entry), nearest) for key, (entry, nearest) in found.items()}

    DHTProtocol.call_find = call_find


def _leash_daemon() -> None:
    """Have the kernel end `p2pd` with the thread that started it (the role's event loop)."""
    if not sys.platform.startswith("linux"):
        return
    import hivemind.p2p.p2p_daemon as module

    libc = ctypes.CDLL(None, use_errno=True)
    leash = partial(libc.prctl, _PR_SET_PDEATHSIG, int(signal.SIGKILL))

    class _Asyncio:
        """`asyncio` as hivemind's daemon module sees it: its subprocesses die with us."""

        subprocess = SimpleNamespace(
            PIPE=asyncio.subprocess.PIPE,
            STDOUT=asyncio.subprocess.STDOUT,
            create_subprocess_exec=partial(asyncio.create_subprocess_exec, preexec_fn=leash),
        )

        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

    module.asyncio = _Asyncio()
