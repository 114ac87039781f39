from __future__ import annotations

import logging
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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

from distqat.checkpoint import CheckpointStore, ShardState, verify
from distqat.checkpoint.manifest import MANIFEST, read_manifest
from distqat.checkpoint.shard import load_shard
from distqat.errors import CheckpointError

UID, OTHER = "front.0.0.0", "front.0.1.0"


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run", RUN)


def marked(
    round: int, step: int, mark: str | None, *, stage: str = "front", uid: str = UID, value: float = 0.5
) -> ShardState:
    """One replica's part at a step; the value tells parts apart."""
    return shard_state(round, stage=stage, step=step, mark=mark, private={uid: moments(step, value)})


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(bytes(data))


def names(store: CheckpointStore, stage: str = "front") -> list[str]:
    return [mark.mark for mark in store.marks(stage, DIGEST)]


def test_a_mark_loads_what_was_written_under_it(store: CheckpointStore) -> None:
    path = store.write("front", marked(1, 10, None))
    store.write("front", marked(1, 12, "0-7-000012", value=1.0))
    store.write("front", marked(1, 15, None, value=2.0))
    shard = store.load_mark("front", "0-7-000012", DIGEST)
    assert same_bits(shard.shared, shared_tensors(1))
    assert same_bits(shard.private[UID], moments(12, 1.0))
    assert (shard.parts[UID].step, shard.parts[UID].mark) == (12, "0-7-000012")
    assert same_bits(newest(store).private[UID], moments(15, 2.0))
    (mark,) = store.marks("front", DIGEST)
    assert (mark.generation, mark.round, mark.step, mark.expert, mark.path) == (0, 1, 12, UID, path)
    assert mark.digest == shard.manifest.digest
    assert store.held("front", DIGEST) == [(0, 1, shard.manifest.digest)]


def test_the_newest_part_of_a_replica_may_be_marked(store: CheckpointStore) -> None:
    store.write("front", marked(1, 10, None))
    store.write("front", marked(1, 12, "m", value=1.0))
    shard = newest(store)
    assert same_bits(shard.private[UID], moments(12, 1.0))
    assert shard.parts[UID].mark == "m"


def test_a_restored_replica_counts_from_a_lower_step_again(store: CheckpointStore) -> None:
    store.write("front", marked(1, 19, "0-7-000019"))
    store.write("front", marked(1, 13, "0-8-000013", value=1.0))
    assert names(store) == ["0-8-000013", "0-7-000019"]
    assert same_bits(newest(store).private[UID], moments(13, 1.0))


def test_the_last_two_marks_and_the_last_unmarked_part_stay(store: CheckpointStore) -> None:
    path = store.write("front", marked(1, 10, None))
    for step in range(11, 16):
        store.write("front", marked(1, step, f"0-7-{step:06d}"))
        store.write("front", marked(1, step, None, value=step))
    manifest = read_manifest(path)
    assert [(p.step, p.mark) for p in manifest.private] == [
        (14, "0-7-000014"),
        (15, "0-7-000015"),
        (15, None),
    ]
    assert {p.name for p in path.iterdir()} == {MANIFEST, *manifest.files}


def test_one_replica_does_not_displace_anothers_marks(store: CheckpointStore) -> None:
    for step in range(11, 14):
        store.write("front", marked(1, step, f"0-7-{step:06d}"))
    for step in range(21, 24):
        store.write("front", marked(1, step, f"1-7-{step:06d}", uid=OTHER))
    assert names(store) == ["1-7-000023", "1-7-000022", "0-7-000013", "0-7-000012"]
    assert set(newest(store).private) == {UID, OTHER}
    assert set(store.load_mark("front", "0-7-000013", DIGEST).private) == {UID}


def test_two_lives_at_the_same_step_do_not_share_a_file(store: CheckpointStore) -> None:
    path = store.write("front", marked(1, 12, "0-7-000012"))
    store.write("front", marked(1, 12, "0-8-000012"))
    parts = read_manifest(path).private
    assert len({part.file for part in parts}) == 2
    flip(path / parts[1].file)
    assert same_bits(store.load_mark("front", "0-7-000012", DIGEST).private[UID], moments(12))


def test_the_same_part_again_is_the_same_file(store: CheckpointStore) -> None:
    path = store.write("front", marked(1, 12, "m"))
    flip(path / read_manifest(path).private[0].file)
    store.write("front", marked(1, 12, "m"))
    assert same_bits(store.load_mark("front", "m", DIGEST).private[UID], moments(12))
    store.write("front", marked(1, 12, "m", value=1.0))
    assert same_bits(store.load_mark("front", "m", DIGEST).private[UID], moments(12, 1.0))
    assert names(store) == ["m"]
    assert len(list(path.iterdir())) == 3


def test_marks_are_newest_first_over_rounds_and_generations(store: CheckpointStore) -> None:
    for generation, round, mark in ((0, 8, "a"), (0, 9, "b"), (0, 9, "c"), (1, 2, "d"), (0, 9, "e")):
        store.write("front", replace(marked(round, 10, mark), generation=generation))
    assert names(store) == ["d", "e", "c", "a"]
    assert [held[:2] for held in store.held("front", DIGEST)] == [(1, 2), (0, 9), (0, 8)]
    assert store.marks("back", DIGEST) == store.held("back", DIGEST) == []


def test_marks_of_other_runs_and_settings_are_not_offered(store: CheckpointStore, tmp_path: Path) -> None:
    other = replace(marked(1, 12, "a"), agreement={**AGREEMENT, "model.hidden": 9}, agreement_digest="b" * 64)
    store.write("front", other)
    CheckpointStore(tmp_path / "run", "other").write("front", marked(2, 22, "b"))
    assert names(store) == []
    assert store.held("front", DIGEST) == []
    with pytest.raises(CheckpointError, match=r"'a' of stage front.*\(model.hidden\)"):
        store.load_mark("front", "a", DIGEST, agreement=AGREEMENT)
    with pytest.raises(CheckpointError, match="of run 'other'"):
        store.load_mark("front", "b", DIGEST)


@pytest.mark.parametrize("which", ["shared.safetensors", "inner", MANIFEST])
def test_a_broken_mark_is_refused_by_name(store: CheckpointStore, which: str) -> None:
    store.write("front", marked(1, 10, "older"))
    path = store.write("front", marked(2, 20, "newer"))
    (broken,) = [p for p in path.iterdir() if p.name.startswith(which)]
    flip(broken)
    with pytest.raises(CheckpointError, match="mark 'newer' of stage front"):
        store.load_mark("front", "newer", DIGEST)
    assert same_bits(store.load_mark("front", "older", DIGEST).private[UID], moments(10))
    assert any(str(broken) in problem for report in verify(path.parent.parent) for problem in report.problems)


def test_a_mark_that_two_replicas_wrote_loads_from_the_other(store: CheckpointStore) -> None:
    store.write("front", marked(1, 12, "m"))
    path = store.write("front", marked(1, 12, "m", uid=OTHER, value=1.0))
    flip(path / read_manifest(path).private[1].file)
    assert set(store.load_mark("front", "m", DIGEST).private) == {UID}
    with pytest.raises(CheckpointError, match="bytes changed"):
        store.load_mark("front", "m", DIGEST, expert=OTHER)


def test_a_mark_that_nobody_wrote(store: CheckpointStore) -> None:
    path = store.write("front", marked(1, 12, "m"))
    with pytest.raises(CheckpointError, match=r"'n' of stage front .* nobody wrote it"):
        store.load_mark("front", "n", DIGEST)
    with pytest.raises(CheckpointError, match="nothing under mark 'n'"):
        load_shard(path, mark="n")


@pytest.mark.parametrize("mark", ["", "..", "a/b", ".a", "a b", "ä", "a" * 101])
def test_marks_stay_inside_the_folder(store: CheckpointStore, tmp_path: Path, mark: str) -> None:
    with pytest.raises(CheckpointError, match=r"file name|more than 100"):
        store.write("front", marked(1, 12, mark))
    assert list(tmp_path.iterdir()) == []


def test_rounds_of_the_last_two_marks_are_kept(store: CheckpointStore) -> None:
    store.write("front", marked(1, 10, "a"))
    store.write("front", marked(2, 20, "b"))
    store.write("front", marked(3, 30, "c"))
    for round in range(4, 9):
        store.write("front", shard_state(round))
        store.prune()
    assert [entry.round for entry in store.rounds()] == [2, 3, 6, 7, 8]
    store.write("front", marked(8, 80, "d"))
    store.prune()
    assert [entry.round for entry in store.rounds()] == [3, 6, 7, 8]
    assert names(store) == ["d", "c"]


def test_keepers_that_prune_at_once_say_nothing(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for round in range(9):
        store.write("front", shard_state(round))
    seen = store.rounds()
    store.prune()
    monkeypatch.setattr(store, "rounds", lambda: seen)  # what a second keeper listed just before
    with caplog.at_level(logging.DEBUG):
        assert store.prune() == []
    assert caplog.text == ""


WRITES = st.tuples(
    st.sampled_from(["front", "back"]),
    st.sampled_from([UID, OTHER]),
    st.sampled_from(["round", "mark", "plain", "prune", "again"]),
)


@settings(max_examples=20)
@given(st.lists(WRITES, max_size=25))
def test_whatever_is_written_and_pruned_the_last_parts_load(actions: list[tuple[str, str, str]]) -> None:
    """Against a model of what each replica wrote last."""
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder) / "run", RUN, keep=2)
        round, step = {"front": 0, "back": 0}, 0
        wrote: dict[str, dict[str, tuple[int, str]]] = {"front": {}, "back": {}}
        for stage, uid, action in actions:
            step += action != "again"
            if action == "round":
                round[stage] += 1
            elif action == "prune":
                store.prune()
            else:
                mark = None if action == "plain" else f"0-7-{step:06d}"
                store.write(stage, marked(round[stage], step, mark, stage=stage, uid=uid, value=step))
                if mark is not None:
                    wrote[stage].pop(mark, None)
                    wrote[stage][mark] = (step, uid)
        store.prune()
        assert temporary_files(Path(folder)) == []
        assert not any(r.problems for r in (verify(store._folder) if store.rounds() else []))
        for stage, marks in wrote.items():
            offered = names(store, stage)
            for mark in list(marks)[-2:]:
                assert mark in offered
                value, uid = marks[mark]
                found = store.load_mark(stage, mark, DIGEST, expert=uid)
                assert same_bits(found.private[uid], moments(value, value))
            assert set(offered) <= set(marks)
            for mark in offered:
                store.load_mark(stage, mark, DIGEST)


def test_replicas_write_marks_of_the_same_round_at_once(store: CheckpointStore) -> None:
    uids = [f"front.0.{index}.0" for index in range(6)]
    states = [marked(1, 12, f"{index}-7-000012", uid=uid, value=index) for index, uid in enumerate(uids)]
    with ThreadPoolExecutor(len(uids)) as pool:
        list(pool.map(lambda state: store.write("front", state), states))
    for index, uid in enumerate(uids):
        shard = store.load_mark("front", f"{index}-7-000012", DIGEST)
        assert same_bits(shard.private[uid], moments(12, index))
