"""The frame of the wire: a fixed prefix, a small msgpack header, then raw tensor bytes.

    prefix   magic(2) version(1) kind(1) header bytes(4) request id(4) payload bytes(8)   big endian, 20 bytes
    header   {"m": method, "f": fields, "t": [[name, dtype, shape, needs_grad], ...], "d": xxh3 of payload}
    payload  the tensors one behind the other, each padded to 16 bytes

A tensor that travels coded (`codec.activations`) has two more entries, the name of its codec and its parts,
[[name, dtype, size], ...]: those are in the payload in its place. Who receives the frame gets the tensor.

Everything that a peer sent is checked before a tensor is made of it: sizes against caps, dtypes against an
allow-list, shapes against byte counts, depth of the header, the digest.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import torch
import xxhash

from distqat.codec.activation_codec import Coded, decode_activation
from distqat.errors import BadContribution, BadFrame, UnknownName
from distqat.swarm.tensor_spec import TensorSpec, parse_spec
from distqat.tensor_bytes import DTYPE_NAMES, DTYPES, flat_bytes

PROTOCOL_VERSION = 3
MAGIC = b"DQ"
PREFIX = struct.Struct(">2sBBIIQ")
MAX_HEADER_BYTES = 64 * 1024
MAX_DEPTH = 16
ALIGNMENT = 16

CALL, REPLY, ERROR, PING, PONG, BYE = range(1, 7)
KINDS = frozenset((CALL, REPLY, ERROR, PING, PONG, BYE))

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One call or reply: plain fields, named tensors; `needs_grad` names those whose gradient is wanted.

    `coded`, of a message to be sent: what travels in place of some of the tensors.
    """

    fields: Fields = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    needs_grad: frozenset[str] = frozenset()
    coded: Mapping[str, Coded] = field(default_factory=dict)


@dataclass(frozen=True)
class FramePrefix:
    """The fixed part of a frame."""

    kind: int
    header_bytes: int
    request: int
    payload_bytes: int

    @classmethod
    def unpack(cls, raw: bytes | bytearray | memoryview, max_payload: int) -> FramePrefix:
        """Parse and check 20 bytes; raises BadFrame."""
        magic, version, kind, header_bytes, request, payload_bytes = PREFIX.unpack(raw)
        if magic != MAGIC:
            raise BadFrame(f"a frame must start with {MAGIC!r}, got {bytes(magic)!r}; is the peer DistQat?")
        if version != PROTOCOL_VERSION:
            raise BadFrame(
                f"frame of protocol version {version}, this is {PROTOCOL_VERSION}; use one version"
            )
        if kind not in KINDS:
            raise BadFrame(f"unknown frame kind {kind}")
        if header_bytes > MAX_HEADER_BYTES:
            raise BadFrame(f"header of {header_bytes} bytes, at most {MAX_HEADER_BYTES} are taken")
        if payload_bytes > max_payload:
            raise BadFrame(f"payload of {payload_bytes} bytes, at most {max_payload} are taken")
        return cls(kind, header_bytes, request, payload_bytes)


def encode(kind: int, request: int, method: str, message: Message) -> list[bytes | memoryview]:
    """The buffers of one frame, tensors uncopied where they are contiguous on the CPU."""
    specs, payload, size = [], list[bytes | memoryview](), 0
    digest = xxhash.xxh3_64()
    for name, tensor in message.tensors.items():
        spec = [name, _dtype_name(tensor), list(tensor.shape), name in message.needs_grad]
        coded = message.coded.get(name)
        if coded is not None:
            spec += [coded.codec, [[n, _dtype_name(part), part.numel()] for n, part in coded.parts.items()]]
        specs.append(spec)
        for part in (tensor,) if coded is None else coded.parts.values():
            raw = flat_bytes(part).numpy().data
            padding = bytes(-len(raw) % ALIGNMENT)
            for piece in (raw, padding):
                if len(piece):
                    digest.update(piece)
                    payload.append(piece)
            size += len(raw) + len(padding)
    header = msgpack.packb({"m": method, "f": message.fields, "t": specs, "d": digest.intdigest()})
    if len(header) > MAX_HEADER_BYTES:
        raise BadFrame(f"header of {method!r} takes {len(header)} bytes, at most {MAX_HEADER_BYTES} travel")
    prefix = PREFIX.pack(MAGIC, PROTOCOL_VERSION, kind, len(header), request, size)
    return [prefix + header, *payload]


def decode(
    header: bytes | memoryview, payload: np.ndarray[Any, np.dtype[np.uint8]], max_decoded: int
) -> tuple[str, Message]:
    """Method and message of one frame; the tensors are views of `payload`, those that came coded are new.

    `max_decoded` bounds the bytes of the latter. Raises BadFrame.
    """
    method, fields, specs, digest = _parse_header(bytes(header))
    if xxhash.xxh3_64_intdigest(payload.data) != digest:
        raise BadFrame(f"{method}: the payload's digest does not match its header")
    tensors: dict[str, torch.Tensor] = {}
    needs_grad, offset = set(), 0
    for raw in specs:
        spec = parse_spec(method, raw)
        if spec.name in tensors:
            raise BadFrame(f"{method}: tensor {spec.name!r} appears twice")
        parts: dict[str, torch.Tensor] = {}
        for name, dtype, shape in spec.parts:
            size = math.prod(shape) * dtype.itemsize
            if offset + size > payload.nbytes:
                raise BadFrame(f"{method}: tensor {spec.name!r} of {shape} is longer than the payload")
            parts[name] = _view(payload[offset : offset + size], dtype, shape)
            offset += size + -size % ALIGNMENT
        if spec.codec is None:
            (tensors[spec.name],) = parts.values()
        else:
            max_decoded -= math.prod(spec.shape) * spec.dtype.itemsize
            if max_decoded < 0:
                raise BadFrame(f"{method}: tensor {spec.name!r} of shape {spec.shape} is too large")
            tensors[spec.name] = _decoded(method, spec, parts)
        if spec.wants_grad:
            needs_grad.add(spec.name)
    if offset != payload.nbytes:
        raise BadFrame(f"{method}: {payload.nbytes} payload bytes, the tensors account for {offset}")
    return method, Message(fields, tensors, frozenset(needs_grad))


def _parse_header(raw: bytes) -> tuple[str, dict[str, Any], Sequence[Any], int]:
    try:
        header = msgpack.unpackb(raw, raw=False, ext_hook=_no_extension, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise BadFrame(f"the header is not a msgpack map: {error}") from error
    if not isinstance(header, dict):
        raise BadFrame("the header is not a msgpack map")
    method, fields, specs, digest = (header.get(key) for key in "mftd")
    if not (isinstance(method, str) and isinstance(fields, dict) and isinstance(specs, list)):
        raise BadFrame("the header lacks method, fields or tensors")
    if not isinstance(digest, int) or not _is_plain(fields, MAX_DEPTH):
        raise BadFrame(f"{method}: no digest, or fields that are not plain or nested over {MAX_DEPTH} deep")
    return method, fields, specs, digest


def _decoded(method: str, spec: TensorSpec, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    try:
        return decode_activation(str(spec.codec), parts, spec.shape, spec.dtype)
    except (BadContribution, UnknownName) as error:
        raise BadFrame(f"{method}: tensor {spec.name!r}: {error}") from error


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a field is made of what JSON has, and bytes; msgpack's timestamps come without an ext_hook."""
    if isinstance(value, (dict, list)):
        items = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(item, depth - 1) for item in items)
    return value is None or isinstance(value, (bool, int, float, str, bytes))


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not allowed")


def _view(raw: np.ndarray[Any, np.dtype[np.uint8]], dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    if raw.nbytes == 0:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool:  # any other byte than 0 or 1 would be undefined behaviour in kernels
        return (torch.from_numpy(raw) != 0).reshape(shape)
    return torch.from_numpy(raw).view(dtype).reshape(shape)


def _dtype_name(tensor: torch.Tensor) -> str:
    if tensor.dtype not in DTYPE_NAMES:
        raise BadFrame(f"tensors of {tensor.dtype} do not travel; known: {', '.join(DTYPES)}")
    return DTYPE_NAMES[tensor.dtype]
