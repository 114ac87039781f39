from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.checkpoint.states import RUN, moments, same_bits, shard_state

from distqat.checkpoint import CheckpointStore
from distqat.checkpoint.digested_json import seal
from distqat.checkpoint.manifest import MANIFEST, Manifest, PrivatePart, read_manifest
from distqat.checkpoint.shard import load_shard
from distqat.errors import CheckpointError


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    state = shard_state(4, private={"front.0.0.0": moments(40)})
    return CheckpointStore(tmp_path, RUN).write("front", state)


def rewrite(shard: Path, **changes: Any) -> None:
    changed = Manifest.model_validate({**read_manifest(shard).model_dump(), **changes})
    (shard / MANIFEST).write_bytes(changed.to_json())


def test_it_says_whose_it_is(shard: Path) -> None:
    manifest = read_manifest(shard)
    assert (manifest.run, manifest.stage, manifest.generation, manifest.round) == (RUN, "front", 0, 4)
    assert (manifest.step, manifest.counters) == (40, {"samples": 1280})
    assert manifest.size == sum(p.stat().st_size for p in shard.iterdir() if p.name != MANIFEST)


def test_no_byte_of_it_can_change_unseen(shard: Path) -> None:
    good = (shard / MANIFEST).read_bytes()
    fields = json.loads(good)
    for position in range(1, len(good) - 2, 11):
        bad = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
        (shard / MANIFEST).write_bytes(bad)
        if _said(bad) != fields:  # else it was white space: nothing that is said has changed
            with pytest.raises(CheckpointError, match=str(shard)):
                read_manifest(shard)


def _said(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage": "back"}, "is of stage 'back'"),
        ({"round": 5}, "is of 0000-000005, its folder is 0000-000004"),
        ({"files": {"../x.safetensors": {"size": 1, "sha256": ""}}}, "only safetensors files"),
        ({"files": {"shared.pt": {"size": 1, "sha256": ""}}}, "names 'shared.pt'"),
        ({"files": {}}, "does not list all"),
        ({"format": 3}, "has format 3"),
    ],
)
def test_what_is_said_must_fit(shard: Path, changes: dict[str, Any], said: str) -> None:
    rewrite(shard, **changes)
    with pytest.raises(CheckpointError, match=said):
        read_manifest(shard)


def test_one_of_the_release_before_marks_loads(shard: Path) -> None:
    fields = read_manifest(shard).model_dump(mode="json")
    (part,) = fields["private"]
    old = {**fields, "format": 1, "private": {part["expert"]: part["file"]}}
    (shard / MANIFEST).write_bytes(seal(old))
    assert read_manifest(shard).private == [PrivatePart(**part)]
    loaded = load_shard(shard)
    assert same_bits(loaded.private["front.0.0.0"], moments(40))
    CheckpointStore(shard.parent.parent, RUN).write(
        "front", shard_state(4, step=41, mark="m", private={"front.0.0.0": moments(41)})
    )
    assert [(p.step, p.mark) for p in read_manifest(shard).private] == [(40, None), (41, "m")]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100_000])
def test_what_is_no_manifest(shard: Path, text: str) -> None:
    (shard / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=r"not JSON|own digest"):
        read_manifest(shard)
