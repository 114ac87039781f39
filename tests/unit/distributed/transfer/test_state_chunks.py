"""A state cut into chunks comes together again to the bit, and what contradicts itself is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.diloco.tensor_digest import state_digest
from distqat.distributed.transfer.download import ChunkCache
from distqat.distributed.transfer.state_chunks import ChunkedState, ChunkedStateDescription
from distqat.errors import BadContribution, BadFrame
from distqat.protocol.call_schema import parse
from distqat.protocol.calls.transfer_calls import MAX_CHUNK_BYTES, StateOffer
from distqat.swarm.tensor_frame import Message
from distqat.tensor_bytes import DTYPES

SHAPES = st.lists(st.integers(0, 7), max_size=3)
TENSORS = st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(SHAPES, st.sampled_from([*DTYPES])))


def made(specs: dict[str, tuple[list[int], str]], seed: int = 1) -> dict[str, torch.Tensor]:
    """Random bytes of each dtype; NaN too, whose payload must survive."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (shape, code) in specs.items():
        dtype = DTYPES[code]
        if dtype == torch.bool:
            tensors[name] = torch.randint(0, 2, shape, generator=generator).bool()
            continue
        count = torch.Size(shape).numel() * dtype.itemsize
        raw = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8)
        tensors[name] = raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    return tensors


def read(message: Message) -> ChunkedStateDescription:
    return ChunkedStateDescription.parse(parse(StateOffer, message.fields), message)


def through(whole: ChunkedState) -> dict[str, torch.Tensor]:
    description = read(whole.description.message(3, 7))
    assert description == whole.description
    pieces = ChunkCache()
    for index in pieces.missing(description):
        pieces.add(description, index, whole.chunk(index))
    return pieces.join(description)


@settings(max_examples=60)
@given(specs=TENSORS, chunk_bytes=st.sampled_from([16, 24, 48, 64, 1000, 1 << 20]))
def test_any_state_comes_together_again(specs: dict[str, tuple[list[int], str]], chunk_bytes: int) -> None:
    tensors = made(specs)
    digest = state_digest(tensors)
    found = through(ChunkedState(tensors, digest, chunk_bytes))
    assert found.keys() == tensors.keys()
    assert state_digest(found) == digest
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)


def test_strides_do_not_matter() -> None:
    plain = {"a": torch.arange(12.0).reshape(3, 4), "one": torch.tensor([5]), "zero_dim": torch.tensor(2.5)}
    odd = {"zero_dim": plain["zero_dim"], "one": torch.arange(9)[5::7], "a": plain["a"].t().contiguous().t()}
    digest = state_digest(plain)
    assert ChunkedState(plain, digest, 16).description == ChunkedState(odd, digest, 16).description


def test_equal_chunks_travel_once() -> None:
    tensors = {"momentum": torch.zeros(1000), "weights": torch.arange(100.0)}
    whole = ChunkedState(tensors, state_digest(tensors), 64).description
    assert len(ChunkCache().missing(whole)) == len(set(whole.hashes)) < 20 < len(whole.hashes)


def test_a_chunk_that_is_not_there() -> None:
    for tensors in ({}, {"empty": torch.empty(0, 3)}, {"a": torch.ones(5)}):
        whole = ChunkedState(tensors, state_digest(tensors), 16)
        for index in (-1, len(whole.description.hashes)):
            with pytest.raises(BadFrame):
                whole.chunk(index)


def test_wrong_bytes_and_wrong_sizes_are_refused() -> None:
    tensors = {"a": torch.arange(10.0)}
    whole = ChunkedState(tensors, state_digest(tensors), 16)
    pieces, good = ChunkCache(), whole.chunk(0)
    flipped = good.clone()
    flipped[3] ^= 1
    for chunk in (flipped, good[:8], good.float(), good.reshape(4, 4), None, whole.chunk(1)):
        with pytest.raises(BadContribution):
            pieces.add(whole.description, 0, chunk)
    assert 0 in pieces.missing(whole.description)


def test_chunks_of_another_state_do_not_make_this_one() -> None:
    tensors = {"a": torch.arange(10.0)}
    whole = ChunkedState({"a": torch.arange(10.0) + 1}, state_digest(tensors), 16)
    with pytest.raises(BadContribution, match="digest"):
        through(whole)


def _schema(entries: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(entries).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("schema", "hashes"),
    [
        (_schema([["a", "f32", [4]]]), 0),
        (_schema([["a", "f32", [4]]]), 2),
        (_schema([["a", "f32", [-4]]]), 1),
        (_schema([["a", "f32", [True]]]), 1),
        (_schema([["a", "f33", [4]]]), 1),
        (_schema([["a", "f32"]]), 1),
        (_schema([["a", "f32", [1] * 9]]), 1),
        (_schema([["b", "u8", [1]], ["a", "u8", [1]]]), 2),
        (_schema([["a", "u8", [1]], ["a", "u8", [1]]]), 2),
        (_schema([["a", "f64", [2**36]]]), 1),
        (_schema([["a", "f64", [2**30, 2**30, 2**30]]]), 1),
        (_schema({"a": 1}), 0),
        (_schema([4]), 0),
        (torch.frombuffer(bytearray(b"[" * 100_000), dtype=torch.uint8), 0),
        (torch.frombuffer(bytearray(b"\xff\xfe"), dtype=torch.uint8), 0),
        (_schema([]).float(), 0),
    ],
)
def test_descriptions_that_contradict_themselves(schema: torch.Tensor, hashes: int) -> None:
    tensors = {"schema": schema, "hashes": torch.zeros(32 * hashes, dtype=torch.uint8)}
    with pytest.raises(BadContribution):
        read(Message({"round": 0, "step": 0, "digest": "d", "chunk_bytes": 16}, tensors))


@pytest.mark.parametrize("chunk_bytes", [0, -1, MAX_CHUNK_BYTES + 1, True, "16", None])
def test_chunk_sizes_are_bounded(chunk_bytes: Any) -> None:
    empty = {"schema": _schema([]), "hashes": torch.empty(0, dtype=torch.uint8)}
    with pytest.raises((BadContribution, BadFrame)):
        read(Message({"round": 0, "step": 0, "digest": "d", "chunk_bytes": chunk_bytes}, empty))
