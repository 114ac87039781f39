"""A peer's RSA key: its libp2p identity, and what it signs its directory records with."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqat.errors import RoleError
from distqat.swarm import hivemind_patches


@dataclass(frozen=True)
class PeerIdentity:
    """The key in the file that p2pd reads. `peer` is the libp2p peer id in base58."""

    path: Path
    peer: str
    private_key: Any  # hivemind.utils.crypto.RSAPrivateKey

    @classmethod
    def load_or_create(cls, path: Path) -> PeerIdentity:
        """Read the key of an earlier start, or make one (mode 0600). RoleError for an unreadable file."""
        hivemind_patches.install()
        from hivemind.p2p import P2P, PeerID
        from hivemind.proto import crypto_pb2
        from hivemind.utils.crypto import RSAPrivateKey

        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
            fresh.touch(mode=0o600)  # so that nobody else can read it at any moment
            P2P.generate_identity(str(fresh))
            fresh.chmod(0o600)
            fresh.rename(path)
        raw = path.read_bytes()
        try:
            peer = PeerID.from_identity(raw).to_base58()
            key = RSAPrivateKey.__new__(RSAPrivateKey)
            key.__setstate__({"_private_key": crypto_pb2.PrivateKey.FromString(raw).data})
        except Exception as error:
            raise RoleError(
                f"{path} holds no identity key ({error}); delete it to get a new identity"
            ) from error
        return cls(path, peer, key)


def peer_of_public_key(ssh_key: bytes) -> str:
    """The peer id that belongs to an OpenSSH public key (libp2p specs, peer-ids). Raises ValueError."""
    from cryptography.hazmat.primitives import serialization
    from hivemind.p2p import PeerID
    from hivemind.proto import crypto_pb2

    der = serialization.load_ssh_public_key(ssh_key).public_bytes(
        encoding=serialization.Encoding.DER, format=serialization.PublicFormat.SubjectPublicKeyInfo
    )
    encoded = crypto_pb2.PublicKey(key_type=crypto_pb2.RSA, data=der).SerializeToString()
    sha256_multihash = b"\x12\x20" + hashlib.sha256(encoded).digest()
    return str(PeerID(sha256_multihash).to_base58())
