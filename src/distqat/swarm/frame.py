"""The frame of the wire: a fixed prefix, a small msgpack header, then raw tensor bytes.

    prefix   magic(2) version(1) kind(1) header bytes(4) request id(4) payload bytes(8)   big endian, 20 bytes
    header   {"m": method, "f": fields, "t": [[name, dtype, shape, needs_grad], ...], "d": xxh3 of payload}
    payload  the tensors one behind the other, each padded to 16 bytes

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

from distqat.errors import BadFrame

PROTOCOL_VERSION = 1
MAGIC = b"DQ"
PREFIX = struct.Struct(">2sBBIIQ")
MAX_HEADER_BYTES = 64 * 1024
MAX_DEPTH = 16
MAX_DIMENSIONS = 8
ALIGNMENT = 16

CALL, REPLY, ERROR, PING, PONG, BYE = range(1, 7)
KINDS = frozenset((CALL, REPLY, ERROR, PING, PONG, BYE))

DTYPES: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f64": torch.float64,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One call or reply: plain fields, named tensors; `needs_grad` names those whose gradient is wanted."""

    fields: Fields = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    needs_grad: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Prefix:
    """The fixed part of a frame."""

    kind: int
    header_bytes: int
    request: int
    payload_bytes: int

    @classmethod
    def unpack(cls, raw: bytes | bytearray | memoryview, max_payload: int) -> Prefix:
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
        raw = _bytes_of(tensor)
        padding = -len(raw) % ALIGNMENT
        specs.append([name, _dtype_name(tensor), list(tensor.shape), name in message.needs_grad])
        for part in (raw, bytes(padding)):
            if len(part):
                digest.update(part)
                payload.append(part)
        size += len(raw) + padding
    header = msgpack.packb({"m": method, "f": message.fields, "t": specs, "d": digest.intdigest()})
    if len(header) > MAX_HEADER_BYTES:
        raise BadFrame(f"header of {method!r} takes {len(header)} bytes, at most {MAX_HEADER_BYTES} travel")
    prefix = PREFIX.pack(MAGIC, PROTOCOL_VERSION, kind, len(header), request, size)
    return [prefix + header, *payload]


def decode(header: bytes | memoryview, payload: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[str, Message]:
    """Method and message of one frame; the tensors are views of `payload`. Raises BadFrame."""
    method, fields, specs, digest = _parse_header(bytes(header))
    if xxhash.xxh3_64_intdigest(payload.data) != digest:
        raise BadFrame(f"{method}: the payload's digest does not match its header")
    tensors: dict[str, torch.Tensor] = {}
    needs_grad, offset = set(), 0
    for spec in specs:
        name, dtype, shape, wants_grad = _parse_spec(method, spec)
        if name in tensors:
            raise BadFrame(f"{method}: tensor {name!r} appears twice")
        size = math.prod(shape) * dtype.itemsize
        if offset + size > payload.nbytes:
            raise BadFrame(f"{method}: tensor {name!r} of shape {shape} is longer than the payload")
        tensors[name] = _view(payload[offset : offset + size], dtype, shape)
        if wants_grad:
            needs_grad.add(name)
        offset += size + -size % ALIGNMENT
    if offset != payload.nbytes:
        raise BadFrame(f"{method}: {payload.nbytes} payload bytes, the tensors account for {offset}")
    return method, Message(fields, tensors, frozenset(needs_grad))


def _parse_header(raw: bytes) -> tuple[str, dict[str, Any], Sequence[Any], int]:
    try:
        header = msgpack.unpackb(raw, raw=False, ext_hook=_no_extension, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise BadFrame(f"the header is no msgpack map: {error}") from error
    if not isinstance(header, dict):
        raise BadFrame("the header is no msgpack map")
    method, fields, specs, digest = (header.get(key) for key in "mftd")
    if not (isinstance(method, str) and isinstance(fields, dict) and isinstance(specs, list)):
        raise BadFrame("the header lacks method, fields or tensors")
    if not isinstance(digest, int) or not _is_plain(fields, MAX_DEPTH):
        raise BadFrame(f"{method}: no digest, or fields that are not plain or nested over {MAX_DEPTH} deep")
    return method, fields, specs, digest


def _parse_spec(method: str, spec: Any) -> tuple[str, torch.dtype, list[int], bool]:
    if not (isinstance(spec, list) and len(spec) == 4):
        raise BadFrame(f"{method}: a tensor needs name, dtype, shape and needs_grad")
    name, dtype, shape, wants_grad = spec
    if not (isinstance(name, str) and isinstance(dtype, str) and dtype in DTYPES):
        raise BadFrame(f"{method}: tensor {name!r} of dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if not (isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS and all(_is_size(n) for n in shape)):
        raise BadFrame(f"{method}: tensor {name!r} has no valid shape: {shape!r}")
    if math.prod(max(1, size) for size in shape) >= 2**48:  # an empty tensor, too, has strides
        raise BadFrame(f"{method}: tensor {name!r} of shape {shape} is too large")
    return name, DTYPES[dtype], shape, bool(wants_grad) and DTYPES[dtype].is_floating_point


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40


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


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # one element is contiguous with any stride, and no view then
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
