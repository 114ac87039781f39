"""Named tensors as numbered chunks of bytes, each known by its sha256: what a state transfer moves.

The tensors lie one behind the other in order of their names, each padded to 16 bytes, so equal states give
equal chunks on every donor. Nothing is copied before a chunk is asked for.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distqat.diloco.tensor_digest import state_digest
from distqat.errors import BadContribution, BadFrame
from distqat.protocol.call_schema import fields_of
from distqat.protocol.calls.transfer_calls import StateOffer
from distqat.swarm.tensor_frame import ALIGNMENT, Message
from distqat.swarm.tensor_spec import MAX_DIMENSIONS
from distqat.tensor_bytes import DTYPE_NAMES, DTYPES, flat_bytes

Named = dict[str, Tensor]

CHUNK_BYTES = 1 << 20
MAX_SCHEMA_BYTES = 8 << 20
MAX_STATE_BYTES = 64 << 30
HASH_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class TensorPlace:
    """Where one tensor lies among the bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class ChunkedStateDescription:
    """What a donor says of a state before it hands it over: digest of the state, layout, sha256 per chunk."""

    digest: str
    chunk_bytes: int
    places: tuple[TensorPlace, ...]
    hashes: tuple[bytes, ...]

    @property
    def nbytes(self) -> int:
        """All bytes that travel."""
        return _end(self.places)

    def size(self, index: int) -> int:
        """Bytes of one chunk; the last one may be short."""
        return min(self.chunk_bytes, self.nbytes - index * self.chunk_bytes)

    def message(self, round: int, step: int) -> Message:
        """As the answer to DescribeState. Layout and hashes are payload: a frame's header is small."""
        schema = [[place.name, DTYPE_NAMES[place.dtype], list(place.shape)] for place in self.places]
        tensors = {
            "schema": _bytes(json.dumps(schema, separators=(",", ":")).encode()),
            "hashes": _bytes(b"".join(self.hashes)),
        }
        return Message(fields_of(StateOffer(round, step, self.digest, self.chunk_bytes)), tensors)

    @classmethod
    def parse(cls, offer: StateOffer, message: Message) -> ChunkedStateDescription:
        """What `message` made. Raises BadContribution for anything that contradicts itself."""
        chunk_bytes = offer.chunk_bytes
        raw = [_raw(message, name) for name in ("schema", "hashes")]
        if len(raw[0]) > MAX_SCHEMA_BYTES:
            raise BadContribution(f"a schema of {len(raw[0])} bytes; at most {MAX_SCHEMA_BYTES} are read")
        places = _laid_out(_parse_schema(raw[0]))
        count, rest = divmod(len(raw[1]), HASH_BYTES)
        if rest or count != -(-_end(places) // chunk_bytes):
            raise BadContribution(f"{len(raw[1])} bytes of chunk digests do not fit {_end(places)} bytes")
        hashes = tuple(raw[1][i * HASH_BYTES : (i + 1) * HASH_BYTES] for i in range(count))
        return cls(offer.digest, chunk_bytes, places, hashes)

    def unpack(self, whole: Tensor) -> Named:
        """The tensors among all bytes, as views; BadContribution unless they have the digest of the state."""
        tensors = {place.name: _view(whole, place) for place in self.places}
        found = state_digest(tensors)
        if found != self.digest:
            raise BadContribution(f"its bytes have digest {found[:12]}, it was to be {self.digest[:12]}")
        return tensors


class ChunkedState:
    """A state that is handed out in chunks. Its tensors must not change while it is."""

    def __init__(self, tensors: Mapping[str, Tensor], digest: str, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._digest = digest
        self._chunk_bytes = chunk_bytes
        schema = [(name, tensors[name].dtype, tuple(tensors[name].shape)) for name in sorted(tensors)]
        self._places = _laid_out(schema)
        self._flat = [_flat(tensors[place.name]) for place in self._places]
        self._offsets = [place.offset for place in self._places]

    @cached_property
    def description(self) -> ChunkedStateDescription:
        """Hashes everything at the first time: not for an event loop."""
        count = -(-_end(self._places) // self._chunk_bytes)
        hashes = tuple(hashlib.sha256(self.chunk(i).numpy().data).digest() for i in range(count))
        return ChunkedStateDescription(self._digest, self._chunk_bytes, self._places, hashes)

    def chunk(self, index: int) -> Tensor:
        """The bytes of one chunk, uint8; BadFrame if there is no such chunk."""
        begin, end = index * self._chunk_bytes, min((index + 1) * self._chunk_bytes, _end(self._places))
        if not 0 <= begin < end:
            raise BadFrame(f"a state of {_end(self._places)} bytes has no chunk {index}")
        out = torch.zeros(end - begin, dtype=torch.uint8)
        first = max(bisect.bisect_right(self._offsets, begin) - 1, 0)
        for place, flat in zip(self._places[first:], self._flat[first:], strict=True):
            if place.offset >= end:
                break
            low, high = max(place.offset, begin), min(place.offset + place.nbytes, end)
            if low < high:
                out[low - begin : high - begin] = flat[low - place.offset : high - place.offset]
        return out


def _laid_out(schema: list[tuple[str, torch.dtype, tuple[int, ...]]]) -> tuple[TensorPlace, ...]:
    places, offset = [], 0
    for name, dtype, shape in schema:
        size = math.prod(shape) * dtype.itemsize
        places.append(TensorPlace(name, dtype, shape, offset, size))
        offset += size + -size % ALIGNMENT
        if offset > MAX_STATE_BYTES:
            raise BadContribution(f"a state of more than {MAX_STATE_BYTES} bytes is not taken")
    return tuple(places)


def _end(places: tuple[TensorPlace, ...]) -> int:
    if not places:
        return 0
    end = places[-1].offset + places[-1].nbytes
    return end + -end % ALIGNMENT


def _parse_schema(raw: bytes) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    try:
        entries = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadContribution(f"the schema of a state is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise BadContribution("the schema of a state is not a list")
    schema = [_parse_entry(entry) for entry in entries]
    names = [name for name, _, _ in schema]
    if names != sorted(set(names)):
        raise BadContribution("the schema of a state names its tensors out of order, or twice")
    return schema


def _parse_entry(entry: Any) -> tuple[str, torch.dtype, tuple[int, ...]]:
    if not (isinstance(entry, list) and len(entry) == 3):
        raise BadContribution(f"a tensor needs name, dtype and shape, got {entry!r:.80}")
    name, dtype, shape = entry
    if not (isinstance(name, str) and isinstance(dtype, str) and dtype in DTYPES):
        raise BadContribution(f"tensor {name!r:.80} of dtype {dtype!r:.20} is not taken")
    if not (isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS and all(map(_is_size, shape))):
        raise BadContribution(f"tensor {name!r:.80} has no valid shape: {shape!r:.80}")
    return name, DTYPES[dtype], tuple(shape)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_STATE_BYTES


def _raw(message: Message, name: str) -> bytes:
    tensor = message.tensors.get(name)
    if tensor is None or tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise BadContribution(f"the description of a state lacks its {name}")
    return tensor.numpy().tobytes()


def _bytes(raw: bytes) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)


def _flat(tensor: Tensor) -> Tensor:
    if tensor.dtype not in DTYPE_NAMES:
        raise BadContribution(f"tensors of {tensor.dtype} do not travel")
    return flat_bytes(tensor)


def _view(whole: Tensor, place: TensorPlace) -> Tensor:
    raw = whole[place.offset : place.offset + place.nbytes]
    if not place.nbytes:
        return torch.empty(place.shape, dtype=place.dtype)
    if place.dtype == torch.bool:  # any other byte than 0 or 1 would be undefined behaviour in kernels
        return (raw != 0).reshape(place.shape)
    return raw.view(place.dtype).reshape(place.shape)
