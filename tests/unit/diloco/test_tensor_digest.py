"""The digest sees every bit, every name, and nothing else."""

from __future__ import annotations

import hashlib
import struct

import torch

from distqat.diloco.tensor_digest import state_digest


def test_order_and_memory_layout_do_not_matter() -> None:
    a, b = torch.randn(3, 4), torch.arange(5)
    assert state_digest({"a": a, "b": b}) == state_digest({"b": b.clone(), "a": a.t().contiguous().t()})


def test_everything_else_matters() -> None:
    x = torch.tensor([0.0, 1.0])
    variants = [
        {},
        {"x": x},
        {"y": x},
        {"x": x[None]},
        {"x": x.bfloat16()},
        {"x": x.double()},
        {"x": torch.tensor([-0.0, 1.0])},
        {"x": x, "y": torch.zeros(0)},
        {"x": x, "y": torch.zeros(0, 3)},
        {"x": torch.tensor(1)},
        {"x": torch.tensor(True)},
    ]
    assert len({state_digest(variant) for variant in variants}) == len(variants)


def test_the_stream_of_bytes_is_as_documented() -> None:
    stream = b""
    for header, values in [
        (b'["n", "torch.int64", []]', struct.pack("<q", 3)),
        (b'["w", "torch.float32", [2]]', struct.pack("<2f", 1.0, 2.0)),
    ]:
        stream += struct.pack("<Q", len(header)) + header + values
    digest = state_digest({"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)})
    assert digest == hashlib.sha256(stream).hexdigest()
