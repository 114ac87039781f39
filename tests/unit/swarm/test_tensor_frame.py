"""Frames: what goes in comes out, and whatever comes in is a message or BadFrame."""

from __future__ import annotations

import contextlib
import resource
from typing import Any

import msgpack
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.codec.activation_codec import encode_activation
from distqat.codec.aligned import CodeGrid
from distqat.errors import BadFrame
from distqat.swarm import tensor_frame
from distqat.swarm.frame_reader import FrameReader, ReceivedFrame
from distqat.swarm.tensor_frame import Message
from distqat.tensor_bytes import DTYPE_NAMES, flat_bytes

MAX_PAYLOAD = 1 << 20

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(list(DTYPE_NAMES)))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape, 8), generator=generator)
    if dtype == torch.bool:
        return bits[..., 0].bool()
    tensor = bits.to(torch.uint8).view(dtype)[..., 0]
    return tensor.t() if tensor.ndim == 2 and draw(st.booleans()) else tensor


messages = st.builds(
    Message,
    st.dictionaries(st.text(max_size=8), plain, max_size=4),
    st.dictionaries(st.text(max_size=8), tensors(), max_size=4),
)


def packed(message: Message, method: str = "train") -> bytes:
    return b"".join(tensor_frame.encode(tensor_frame.CALL, 7, method, message))


def parse(raw: bytes) -> ReceivedFrame | None:
    """What a stream of these bytes gives: a frame, None while it is not complete, or BadFrame."""
    incoming, sent = FrameReader(MAX_PAYLOAD, now=0.0), 0
    while sent < len(raw):
        room = incoming.buffer()
        piece = raw[sent : sent + len(room)]
        room[: len(piece)] = piece
        sent += len(piece)
        whole = incoming.received(len(piece), 0.0)
        if whole is not None:
            return whole
    return None


def with_header(payload: bytes = b"", **changes: Any) -> bytes:
    header = {"m": "x", "f": {}, "t": [], "d": xxhash.xxh3_64_intdigest(payload), **changes}
    raw = msgpack.packb({key: value for key, value in header.items() if value is not ...})
    return (
        tensor_frame.PREFIX.pack(
            b"DQ", tensor_frame.PROTOCOL_VERSION, tensor_frame.CALL, len(raw), 1, len(payload)
        )
        + raw
        + payload
    )


@given(messages)
def test_what_goes_in_comes_out(message: Message) -> None:
    whole = parse(packed(message))
    assert whole is not None
    assert (whole.kind, whole.request, whole.method) == (tensor_frame.CALL, 7, "train")
    assert whole.message.fields == message.fields
    assert list(whole.message.tensors) == list(message.tensors)
    for name, sent in message.tensors.items():
        got = whole.message.tensors[name]
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        assert torch.equal(flat_bytes(got), flat_bytes(sent))  # NaN payloads too


SMALL = packed(
    Message(
        {"n": 1, "list": [1, {"a": b"z"}]},
        {"x": torch.arange(6.0).reshape(2, 3), "mask": torch.tensor([True, False])},
        frozenset({"x"}),
    )
)


def test_every_truncation_waits_for_more() -> None:
    assert all(parse(SMALL[:length]) is None for length in range(len(SMALL)))


def test_every_flipped_bit_is_a_bad_frame_or_a_clean_message() -> None:
    outcomes = {"bad": 0, "clean": 0, "waits": 0}
    for position in range(8 * len(SMALL)):
        raw = bytearray(SMALL)
        raw[position // 8] ^= 1 << position % 8
        try:
            whole = parse(bytes(raw))
            outcomes["clean" if whole is not None else "waits"] += 1
        except BadFrame:
            outcomes["bad"] += 1
        if position // 8 >= len(SMALL) - 48:  # the payload is under the digest
            assert outcomes["bad"] > 0
    assert outcomes["bad"] > 0.8 * 8 * len(SMALL)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_header_is_a_bad_frame_or_a_clean_message(header: bytes) -> None:
    raw = (
        tensor_frame.PREFIX.pack(b"DQ", tensor_frame.PROTOCOL_VERSION, tensor_frame.CALL, len(header), 1, 0)
        + header
    )
    with contextlib.suppress(BadFrame):
        parse(raw)


@given(plain, plain, plain, plain)
@settings(max_examples=150)
def test_any_tensor_spec_is_a_bad_frame_or_a_clean_message(a: Any, b: Any, c: Any, d: Any) -> None:
    coded = ([["x", "f32", [4], True, a, b]], [["x", "f32", [4], True, "aligned", [["codes", c, d], a]]])
    for specs in ([[a, b, c, d]], [["x", "f32", c, d]], [["x", b, [2], d]], [a], a, *coded):
        with contextlib.suppress(BadFrame):
            parse(with_header(bytes(16), t=specs))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": [value]}
    return value


@pytest.mark.parametrize(
    "changes",
    [
        {"m": 3},
        {"m": ...},
        {"f": []},
        {"f": {"a": msgpack.Timestamp(1)}},
        {"f": {"a": msgpack.ExtType(5, b"x")}},
        {"f": nested(9)},
        {"t": {}},
        {"t": [["x", "f32", [4]]]},
        {"t": [["x", "f32", [-4], False]]},
        {"t": [["x", "f32", [True], False]]},
        {"t": [["x", "f32", [2.0], False]]},
        {"t": [["x", "f32", [5], False]]},
        {"t": [["x", "f32", [3], False], ["y", "f32", [1], False]]},
        {"t": [["x", ["f32"], [4], False]]},
        {"t": [["x", "complex64", [4], False]]},
        {"t": [["x", "f32", [1] * 9, False]]},
        {"t": [["x", "f32", [0] + [2**39] * 7, False]]},
        {"t": [["x", "f32", [2**39] * 8, False]]},
        {"t": [["x", "f32", [2], False], ["x", "f32", [2], False]]},
        {"t": []},
        {"d": 12345},
        {"d": "12345"},
        {"d": None},
    ],
)
def test_bad_headers(changes: dict[str, Any]) -> None:
    with pytest.raises(BadFrame):
        parse(with_header(bytes(16), **changes))


def test_a_header_nested_a_thousand_deep_is_a_bad_frame() -> None:
    for opener in (b"\x91", b"\x81\xa1a", b"\xd4\x05"):
        raw = opener * 20_000
        with pytest.raises(BadFrame):
            parse(
                tensor_frame.PREFIX.pack(
                    b"DQ", tensor_frame.PROTOCOL_VERSION, tensor_frame.CALL, len(raw), 1, 0
                )
                + raw
            )


def test_an_integer_tensor_never_needs_a_gradient() -> None:
    whole = parse(with_header(bytes(16), t=[["x", "i32", [4], True]]))
    assert whole is not None
    assert whole.message.needs_grad == frozenset()


def test_a_mask_byte_of_another_value_is_true() -> None:
    whole = parse(with_header(b"\x07" + bytes(15), t=[["x", "bool", [2], False]]))
    assert whole is not None
    assert whole.message.tensors["x"].view(torch.uint8).tolist() == [1, 0]


def test_an_announced_payload_takes_no_memory_before_it_comes() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    streams = []
    for _ in range(20):
        incoming = FrameReader(2**31, now=0.0)
        header = with_header()[tensor_frame.PREFIX.size :]
        raw = (
            tensor_frame.PREFIX.pack(
                b"DQ", tensor_frame.PROTOCOL_VERSION, tensor_frame.CALL, len(header), 1, 2**31
            )
            + header
        )
        while raw:
            room = incoming.buffer()
            count = min(len(room), len(raw))
            room[:count], raw = raw[:count], raw[count:]
            incoming.received(count, 0.0)
        streams.append(incoming)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_what_cannot_travel_says_so() -> None:
    with pytest.raises(BadFrame, match="complex64"):
        packed(Message(tensors={"x": torch.zeros(1, dtype=torch.complex64)}))
    with pytest.raises(BadFrame, match="header of 'train'"):
        packed(Message({"x": "y" * tensor_frame.MAX_HEADER_BYTES}))


def test_one_element_with_a_stride_travels() -> None:
    whole = parse(packed(Message(tensors={"x": torch.arange(6.0)[::2][1:2]})))
    assert whole is not None
    assert whole.message.tensors["x"].tolist() == [2.0]


GRID_PART = [1.0, 0.0, 3.0]  # step, lowest, highest
CODED_PARTS = [["codes", "u8", 4], ["grid", "f32", 3]]
CODED = ["x", "f32", [2, 2], True, "aligned", CODED_PARTS]


def coded_payload(codes: bytes = b"\x00\x01\x02\x03", grid: list[float] = GRID_PART) -> bytes:
    return codes.ljust(16, b"\0") + torch.tensor(grid).numpy().tobytes().ljust(16, b"\0")


def test_a_coded_tensor_arrives_as_the_tensor() -> None:
    x, mask = torch.tensor([[0.0, 1.5], [3.0, 0.5]]), torch.tensor([1, 2])
    coded = encode_activation(x, CodeGrid(0.5, 0, 255), None)
    assert coded is not None
    sent = Message({"n": 1}, {"x": x, "mask": mask}, frozenset({"x"}), {"x": coded})
    whole = parse(packed(sent))
    assert whole is not None
    assert list(whole.message.tensors) == ["x", "mask"]
    assert torch.equal(whole.message.tensors["x"], x)
    assert whole.message.needs_grad == {"x"}
    assert whole.message.coded == {}


def test_codes_by_hand() -> None:
    whole = parse(with_header(coded_payload(), t=[CODED]))
    assert whole is not None
    assert whole.message.tensors["x"].tolist() == [[0.0, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("spec", "payload"),
    [
        (["x", "f32", [2, 2], True, "alined", CODED_PARTS], coded_payload()),
        (["x", "f32", [2, 2], True, 7, CODED_PARTS], coded_payload()),
        (["x", "f32", [2, 2], True, "aligned"], coded_payload()),
        (["x", "f32", [2, 2], True, "aligned", {}], coded_payload()),
        (["x", "f32", [2, 2], True, "aligned", []], b""),
        (["x", "f32", [2, 2], True, "aligned", [CODED_PARTS[0]] * 2], bytes(32)),
        (["x", "f32", [2, 2], True, "aligned", [["codes", "u8"], CODED_PARTS[1]]], coded_payload()),
        (["x", "f32", [2, 2], True, "aligned", [["codes", "u8", -4], CODED_PARTS[1]]], coded_payload()),
        (["x", "f32", [2, 2], True, "aligned", [["codes", "i8", 4], CODED_PARTS[1]]], coded_payload()),
        (["x", "f32", [2, 2], True, "aligned", [["codes", "u8", 99], CODED_PARTS[1]]], coded_payload()),
        (["x", "f32", [3, 2], True, "aligned", CODED_PARTS], coded_payload()),
        (["x", "f32", [2**30, 2], True, "aligned", CODED_PARTS], coded_payload()),
        (["x", "f64", [2, 2], True, "aligned", CODED_PARTS], coded_payload()),
        (["x", "i64", [2, 2], True, "aligned", CODED_PARTS], coded_payload()),
        (CODED, coded_payload(codes=b"\x00\x01\x02\x04")),
        (CODED, coded_payload(grid=[0.0, 0.0, 3.0])),
        (CODED, coded_payload(grid=[float("nan"), 0.0, 3.0])),
        (CODED, coded_payload(grid=[1.0, 0.0, 300.0])),
        (CODED, coded_payload()[:16]),
    ],
)
def test_bad_coded_tensors(spec: list[Any], payload: bytes) -> None:
    with pytest.raises(BadFrame):
        parse(with_header(payload, t=[spec]))


def test_what_is_decoded_is_bounded_as_the_payload_is() -> None:
    spec = [
        "x",
        "f32",
        [MAX_PAYLOAD // 2],
        False,
        "aligned",
        [["codes", "u8", MAX_PAYLOAD // 2], ["grid", "f32", 3]],
    ]
    payload = bytes(MAX_PAYLOAD // 2) + coded_payload()[16:]
    with pytest.raises(BadFrame, match="too large"):
        parse(with_header(payload, t=[spec]))
