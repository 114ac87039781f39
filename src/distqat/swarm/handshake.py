"""The first bytes of a stream: fixed sizes both ways, so that nothing is read past them.

    dialler   magic(4) version(2) purpose(1) pad(1) link(16) run(16) proof(32) peer(64)     136 bytes
    answer    magic(4) version(2) verdict(1) pad(1) reason(120), or a proof in its place    128 bytes

Both sides prove that they know the run's token: HMAC-SHA256 of link, dialler and acceptor, and whose proof it
is (all zero without a token). libp2p authenticates both peers, so a proof cannot be replayed by another.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
import struct
from dataclasses import dataclass, field

from distqat.errors import BadFrame, CallTimeout, PeerGone, ProtocolMismatch, Refused
from distqat.swarm.deadline import within
from distqat.swarm.tensor_frame import PROTOCOL_VERSION

MAGIC = b"DQAT"
HELLO = struct.Struct(">4sHBx16s16s32s64s")
ANSWER = struct.Struct(">4sHBx120s")
DATA, CONTROL = 0, 1
TOKEN = "DISTQAT_TOKEN"
"""The environment variable with the secret of a run that is not open to anybody."""
HELLO_TIMEOUT = 10.0
_WELCOME, _NO = 1, 0


@dataclass(frozen=True)
class Admission:
    """Who we are and which run and token we hold."""

    run: str
    peer: str
    token: str | None = None

    @classmethod
    def of_environment(cls, run: str, peer: str) -> Admission:
        """With the token that this process was given, if any."""
        return cls(run, peer, os.environ.get(TOKEN) or None)

    def run_digest(self) -> bytes:
        return hashlib.sha256(self.run.encode()).digest()[:16]

    def proof(self, link: bytes, dialler: str, acceptor: str, *, answering: bool = False) -> bytes:
        """32 bytes that take the token to make, for this link alone; `answering`: those of the acceptor."""
        if self.token is None:
            return bytes(32)
        text = link + f"|{dialler}|{acceptor}{'|welcome' if answering else ''}".encode()
        return hmac.new(self.token.encode(), text, hashlib.sha256).digest()


@dataclass(frozen=True)
class Hello:
    """What a dialler says of itself."""

    peer: str
    purpose: int
    link: bytes = field(default_factory=lambda: secrets.token_bytes(16))


async def greet(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, me: Admission, to: str, hello: Hello
) -> None:
    """Dial side. Raises ProtocolMismatch or Refused with the peer's reason, PeerGone, CallTimeout.

    Anybody may announce itself in the DHT, so a peer that does not prove the token is as good as gone.
    """
    proof = me.proof(hello.link, me.peer, to)
    writer.write(
        HELLO.pack(
            MAGIC,
            PROTOCOL_VERSION,
            hello.purpose,
            hello.link,
            me.run_digest(),
            proof,
            me.peer.encode(),
        )
    )
    raw = await _read(reader, ANSWER.size, to)
    magic, version, verdict, reason = ANSWER.unpack(raw)
    if magic != MAGIC:
        raise BadFrame(f"{to} does not speak DistQat's protocol")
    if verdict != _WELCOME:
        text = reason.rstrip(b"\0").decode(errors="replace")
        kind = Refused if version == PROTOCOL_VERSION else ProtocolMismatch
        raise kind(f"{to} refused the connection: {text}")
    if not hmac.compare_digest(reason[:32], me.proof(hello.link, me.peer, to, answering=True)):
        raise PeerGone(f"{to} does not know the run's token, so it does not belong to the run")


async def receive(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, me: Admission, peer: str | None
) -> Hello:
    """Accepting side; `peer` is what the transport authenticated, None where it did not.

    To be followed by `welcome` or `refuse`. Raises BadFrame, ProtocolMismatch or Refused after it told the
    dialler why.
    """
    raw = await _read(reader, HELLO.size, peer or "a dialler")
    magic, version, purpose, link, run, proof, claimed = HELLO.unpack(raw)
    if magic != MAGIC:
        raise BadFrame(f"the stream of {peer or 'a dialler'} does not start with DistQat's hello")
    dialler = peer or claimed.rstrip(b"\0").decode(errors="replace")
    if version != PROTOCOL_VERSION:
        reason = f"it speaks protocol version {version}, this peer {PROTOCOL_VERSION}: update one of them"
        refuse(writer, reason)
        raise ProtocolMismatch(f"{dialler}: {reason}")
    reason = ""
    if run != me.run_digest():
        reason = f"another run; this peer belongs to experiment_prefix {me.run!r}"
    elif not hmac.compare_digest(proof, me.proof(link, dialler, me.peer)):
        reason = f"the run's token does not match: set {TOKEN} as the others have it"
    elif purpose not in (DATA, CONTROL):
        reason = f"a channel of unknown purpose {purpose}"
    if reason:
        refuse(writer, reason)
        raise Refused(f"{dialler}: {reason}")
    return Hello(dialler, purpose, link)


def welcome(writer: asyncio.StreamWriter, me: Admission, hello: Hello) -> None:
    """Accept, and prove the token: to be called once the stream's frames can be received."""
    _answer(writer, _WELCOME, me.proof(hello.link, hello.peer, me.peer, answering=True))


def refuse(writer: asyncio.StreamWriter, reason: str) -> None:
    """Say no, and why."""
    _answer(writer, _NO, reason.encode())


def _answer(writer: asyncio.StreamWriter, verdict: int, text: bytes) -> None:
    writer.write(ANSWER.pack(MAGIC, PROTOCOL_VERSION, verdict, text[:120]))


async def _read(reader: asyncio.StreamReader, size: int, peer: str) -> bytes:
    try:
        return await within(reader.readexactly(size), HELLO_TIMEOUT)
    except asyncio.TimeoutError:
        raise CallTimeout(f"{peer} said nothing for {HELLO_TIMEOUT:.0f} s after the stream opened") from None
    except (asyncio.IncompleteReadError, ConnectionError, OSError) as error:
        raise PeerGone(f"{peer} closed the stream before its hello was complete") from error
