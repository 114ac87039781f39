from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.checkpoint.states import (
    AGREEMENT,
    DIGEST,
    RUN,
    moments,
    newest,
    same_bits,
    shard_state,
    shared_tensors,
    temporary_files,
)

from distqat.checkpoint import CheckpointStore, tensor_file
from distqat.checkpoint.atomic_folders import locked, set_aside, temporary_folder
from distqat.checkpoint.manifest import MANIFEST, SHARED, read_manifest
from distqat.distributed.serving.committed_state import CommittedState
from distqat.errors import CheckpointError


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run", RUN)


def test_round_trip_to_the_bit(store: CheckpointStore) -> None:
    path = store.write("front", shard_state(7, private={"front.0.0.0": moments(70)}))
    shard = newest(store)
    assert shard.path == path
    assert same_bits(shard.shared, shared_tensors(7))
    assert same_bits(shard.private["front.0.0.0"], moments(70))
    assert (shard.manifest.step, shard.manifest.counters["samples"]) == (70, 2240)
    assert temporary_files(path.parent.parent) == []


def test_the_committed_state_of_a_stage_fits(store: CheckpointStore) -> None:
    tensors = {"anchor/w": torch.ones(2), "outer/step": torch.tensor(3), "buffer/b": torch.zeros(1)}
    shared = CommittedState.from_tensors(3, tensors, {})
    store.write("front", shard_state(3, shared=shared.tensors(), digest=shared.digest))
    assert CommittedState.from_tensors(3, newest(store).shared, {}).digest == shared.digest


def test_newest_is_by_generation_then_round(store: CheckpointStore) -> None:
    for generation, round in ((0, 9), (1, 2), (0, 11)):
        store.write("front", shard_state(round, generation=generation))
    assert newest(store).path.parent.name == "0001-000002"
    assert [(e.generation, e.round) for e in store.rounds()] == [(0, 9), (0, 11), (1, 2)]


def test_nothing_is_none(store: CheckpointStore) -> None:
    assert store.newest_valid("front", DIGEST) is None
    assert store.rounds() == []
    assert store.prune() == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def pickled(path: Path) -> None:
    torch.save({"x": torch.zeros(2)}, path)


def renamed_pickle(path: Path) -> None:
    pickled(path.with_name("shared.pt"))
    (path.parent / MANIFEST).unlink()


def listed_pickle(path: Path) -> None:
    """Its digest fits: only that it is not a safetensors file speaks against it."""
    pickled(path)
    import hashlib

    data = path.read_bytes()
    entry = tensor_file.FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    manifest = read_manifest(path.parent).model_copy(update={"files": {SHARED: entry}})
    (path.parent / MANIFEST).write_bytes(manifest.to_json())


def another_stage(path: Path) -> None:
    other = CheckpointStore(path.parent.parent.parent, RUN).write("back", shard_state(2, stage="back"))
    for name in (SHARED, MANIFEST):
        (other / name).replace(path.parent / name)


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "bytes changed"),
        (cut, "cut short"),
        (pickled, "bytes"),
        (renamed_pickle, "shared.pt"),
        (listed_pickle, "not a safetensors file"),
        (another_stage, "is of stage 'back'"),
        (removed, "No such file"),
    ],
)
def test_a_broken_one_is_skipped_by_name(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture, damage: Any, said: str
) -> None:
    store.write("front", shard_state(1))
    broken = store.write("front", shard_state(2))
    damage(broken / SHARED)
    with caplog.at_level(logging.WARNING):
        shard = newest(store)
    assert shard.manifest.round == 1
    assert same_bits(shard.shared, shared_tensors(1))
    (skipped,) = store.search("front", DIGEST).skipped
    assert skipped.path == broken
    assert said in skipped.reason
    assert str(broken) in caplog.text


def test_a_state_of_another_digest_is_skipped(store: CheckpointStore) -> None:
    store.write("front", shard_state(1, digest="0" * 64))
    assert "is not the state" in store.search("front", DIGEST).skipped[0].reason


def test_another_run_and_other_settings_are_named(store: CheckpointStore, tmp_path: Path) -> None:
    store.write(
        "front", shard_state(1, agreement={**AGREEMENT, "model.hidden": 9}, agreement_digest="b" * 64)
    )
    CheckpointStore(tmp_path / "run", "other").write("front", shard_state(2))
    search = store.search("front", DIGEST, agreement=AGREEMENT)
    assert search.shard is None
    assert "of run 'other'" in search.skipped[0].reason
    assert "(model.hidden)" in search.skipped[1].reason


def test_a_broken_private_part_costs_only_itself(store: CheckpointStore) -> None:
    private = {"front.0.0.0": moments(10), "front.0.1.0": moments(10, 0.25)}
    path = store.write("front", shard_state(1, private=private))
    flip(path / read_manifest(path).private[0].file)
    shard = newest(store)
    assert set(shard.private) == {"front.0.1.0"}
    assert "bytes changed" in shard.refused["front.0.0.0"]
    only = store.newest_valid("front", DIGEST, expert="front.0.1.0")
    assert only is not None
    assert not only.refused


def test_replicas_write_the_same_round_at_once(store: CheckpointStore) -> None:
    uids = [f"front.0.{index}.0" for index in range(6)]
    states = [shard_state(1, private={uid: moments(10, index)}) for index, uid in enumerate(uids)]
    with ThreadPoolExecutor(len(uids)) as pool:
        paths = set(pool.map(lambda state: store.write("front", state), states))
    assert len(paths) == 1
    shard = newest(store)
    assert not shard.refused
    assert set(shard.private) == set(uids)
    for index, uid in enumerate(uids):
        assert same_bits(shard.private[uid], moments(10, index))
    assert temporary_files(shard.path.parent.parent) == []


@pytest.mark.parametrize("already", [False, True])
def test_what_another_replica_did_just_before_the_lock_stays(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, already: bool
) -> None:
    meanwhile = [shard_state(1, private={"front.0.1.0": moments(10, 0.25)})]

    @contextmanager
    def late(place: Path, *, wait_s: float) -> Iterator[None]:
        if meanwhile:
            store.write("front", meanwhile.pop())
        with locked(place, wait_s=wait_s):
            yield

    if already:
        store.write("front", shard_state(1))
    monkeypatch.setattr("distqat.checkpoint.shard.locked", late)
    store.write("front", shard_state(1, private={"front.0.0.0": moments(10)}))
    assert set(newest(store).private) == {"front.0.0.0", "front.0.1.0"}
    assert not newest(store).refused


def test_a_shard_that_is_gone_when_the_lock_comes_is_written_whole(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.write("front", shard_state(1))

    @contextmanager
    def late(place: Path, *, wait_s: float) -> Iterator[None]:
        set_aside(path)
        with locked(place, wait_s=wait_s):
            yield

    monkeypatch.setattr("distqat.checkpoint.shard.locked", late)
    store.write("front", shard_state(1))
    assert same_bits(newest(store).shared, shared_tensors(1))


def test_a_later_step_replaces_the_private_part(store: CheckpointStore) -> None:
    store.write("front", shard_state(1, private={"front.0.0.0": moments(10)}))
    path = store.write("front", shard_state(1, step=14, private={"front.0.0.0": moments(14)}))
    shard = newest(store)
    assert shard.manifest.step == 14
    assert same_bits(shard.private["front.0.0.0"], moments(14))
    assert len(list(path.iterdir())) == 3


def test_a_broken_one_is_written_again(store: CheckpointStore) -> None:
    path = store.write("front", shard_state(1))
    flip(path / SHARED)
    store.write("front", shard_state(1))
    assert newest(store).manifest.round == 1
    store.prune()
    assert temporary_files(path.parent.parent) == []


def test_another_history_needs_another_generation(store: CheckpointStore) -> None:
    store.write("front", shard_state(1))
    other = shard_state(2)
    with pytest.raises(CheckpointError, match="new generation"):
        store.write("front", shard_state(1, shared=other.shared, digest=other.digest))
    assert same_bits(newest(store).shared, shared_tensors(1))


@pytest.mark.parametrize("failing", ["write", "fsync", "rename", "manifest"])
def test_disk_full_leaves_the_old_one(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = store.write("front", shard_state(1))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_: object, **__: object) -> None:
        raise full

    place = {
        "write": ("distqat.checkpoint.shard.write_tensors", fail),
        "fsync": ("distqat.checkpoint.tensor_file.os.fsync", fail),
        "rename": ("distqat.checkpoint.shard.Path.rename", fail),
        "manifest": ("distqat.checkpoint.shard.write_synced", fail),
    }[failing]
    with monkeypatch.context() as patch:
        patch.setattr(*place)
        with pytest.raises(CheckpointError, match="No space left"):
            store.write("front", shard_state(2))
        with pytest.raises(CheckpointError, match="No space left"):
            store.write("front", shard_state(1, step=11, private={"front.0.0.0": moments(11)}))
    assert [entry.round for entry in store.rounds()] == [1]
    assert temporary_files(path.parent.parent) == []
    assert same_bits(newest(store).shared, shared_tensors(1))
    store.write("front", shard_state(2))
    assert newest(store).manifest.round == 2


def test_the_last_complete_rounds_are_kept(store: CheckpointStore) -> None:
    for round in range(1, 8):
        store.write("front", shard_state(round))
        if round < 5:
            store.write("back", shard_state(round, stage="back"))
    assert [entry.complete for entry in store.rounds()] == [True] * 4 + [False] * 3
    removed = store.prune()
    assert [path.name for path in removed] == ["0000-000001"]
    assert [entry.round for entry in store.rounds()] == [2, 3, 4, 5, 6, 7]
    for round in (5, 6, 7):
        store.write("back", shard_state(round, stage="back"))
    store.prune()
    assert [entry.round for entry in store.rounds()] == [5, 6, 7]


def test_a_host_with_one_stage_keeps_its_last(store: CheckpointStore) -> None:
    for round in range(6):
        store.write("front", shard_state(round))
        store.prune()
    assert [entry.round for entry in store.rounds()] == [3, 4, 5]
    assert store.rounds()[0].missing == ["back"]


def test_prune_leaves_writers_alone(store: CheckpointStore, tmp_path: Path) -> None:
    path = store.write("front", shard_state(1))
    (path.parent / ".front.1-aa.tmp").mkdir()
    (path / "inner-front.0.9.0-00000010.safetensors").write_bytes(b"not listed")
    with temporary_folder(tmp_path / "run" / "0000-000000", "front") as busy:
        store.prune()
        assert busy.exists()
    store.prune()
    assert temporary_files(tmp_path) == []
    assert sorted(p.name for p in path.iterdir()) == [MANIFEST, SHARED]
    assert [entry.round for entry in store.rounds()] == [1]


@pytest.mark.parametrize("stage", ["", "..", "a/b", ".front"])
def test_names_stay_inside_the_folder(store: CheckpointStore, tmp_path: Path, stage: str) -> None:
    with pytest.raises(CheckpointError, match="file name"):
        store.write(stage, shard_state(1))
    assert list(tmp_path.iterdir()) == []
