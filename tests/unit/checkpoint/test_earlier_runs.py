"""Earlier runs in a checkpoint folder are kept beside the one that begins."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.unit.checkpoint.states import RUN, shard_state, trainer_part

from distqat.checkpoint import CheckpointStore, assemble, write_model, write_trainer_part
from distqat.checkpoint.earlier_runs import KEEP_FINISHED, keep_earlier, keep_other_model
from distqat.checkpoint.finished_note import finished_generation, note_finished
from distqat.checkpoint.run_card import METADATA, RunCard, write_card
from distqat.errors import CheckpointError

STAGES = ("front", "back")


def leave(folder: Path, generation: int, rounds: int = 2, *, run: str = RUN, model: bool = True) -> None:
    """What a run leaves that began at `generation`; files bear that time."""
    store = CheckpointStore(folder, run, stages=STAGES)
    for round in range(1, rounds + 1):
        for stage in STAGES:
            store.write(stage, shard_state(round, stage=stage, generation=generation))
    card = RunCard(run=run, generation=generation, config={})
    write_card(folder, card)
    if model:
        told = {METADATA: card.to_json().decode()}
        write_model(folder / "model.safetensors", {"w": torch.full((1,), float(generation))}, told)
    write_trainer_part(folder, trainer_part(rounds, life=generation, generation=generation))
    for path in (*folder.glob("*-*"), *folder.glob("*.*")):
        os.utime(path, (generation + 50, generation + 50))


def test_a_whole_run_moves_and_reads_as_ever(tmp_path: Path) -> None:
    leave(tmp_path, 1000)
    note_finished(tmp_path, 1000)
    earlier = keep_earlier(tmp_path, 2000)
    assert earlier is not None
    assert {path.name for path in tmp_path.iterdir()} == {"previous", "finished", "trainers"}
    assert {path.name for path in earlier.place.iterdir()} == {
        "1000-000001", "1000-000002", "model.safetensors", "run.json", "trainers",
    }  # fmt: skip
    assert assemble(earlier.place, stages=STAGES).round == 2
    assert finished_generation(tmp_path) == 1000
    said = earlier.line()
    assert said.startswith(
        f"an earlier run is kept in {earlier.place}/ (model.safetensors and rounds 1 to 2 of "
    )
    assert "\n" not in said
    assert keep_earlier(tmp_path, 2000) is None


def test_what_is_of_this_run_stays(tmp_path: Path) -> None:
    leave(tmp_path, 1000)
    leave(tmp_path, 2000)
    earlier = keep_earlier(tmp_path, 2000)
    assert earlier is not None
    assert {path.name for path in tmp_path.glob("*-*")} == {"2000-000001", "2000-000002"}
    assert (tmp_path / "model.safetensors").exists()
    assert {path.name for path in earlier.place.iterdir()} == {"1000-000001", "1000-000002", "trainers"}
    assert keep_earlier(tmp_path, 0) is None
    assert keep_earlier(tmp_path / "nothing here", 2000) is None


def test_a_model_of_an_older_release_goes_by_its_time(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, {"w": torch.ones(1)}, {"run": RUN})
    os.utime(path, (1500, 1500))
    assert keep_earlier(tmp_path, 1000) is None
    assert keep_earlier(tmp_path, 2000) is not None
    assert not path.exists()


def test_a_number_is_kept_and_failed_starts_push_no_model_out(tmp_path: Path) -> None:
    places, deleted = [], []
    for generation in range(1000, 1000 + 100 * (KEEP_FINISHED + 2), 100):
        leave(tmp_path, generation)
        earlier = keep_earlier(tmp_path, generation + 100)
        assert earlier is not None
        places.append(earlier.place)
        deleted += list(earlier.deleted)
    assert deleted == [place.name for place in places[:-KEEP_FINISHED]]
    for generation in range(5000, 5400, 100):
        leave(tmp_path, generation, 1, model=False)
        assert keep_earlier(tmp_path, generation + 100) is not None
    kept = sorted((tmp_path / "previous").iterdir())
    assert kept[:-1] == places[-KEEP_FINISHED:]
    assert len(kept) == KEEP_FINISHED + 1


def test_servers_that_share_a_folder_move_it_once(tmp_path: Path) -> None:
    leave(tmp_path, 1000)
    with ThreadPoolExecutor(4) as pool:
        found = [each for each in pool.map(lambda _: keep_earlier(tmp_path, 2000), range(4)) if each]
    assert len(found) == 1
    assert len(list((tmp_path / "previous").iterdir())) == 1


def test_a_model_of_another_run_is_not_replaced(tmp_path: Path) -> None:
    leave(tmp_path, 1000, run="other")
    assert keep_other_model(tmp_path, "other") is None
    earlier = keep_other_model(tmp_path, RUN)
    assert earlier is not None
    assert "the model of run 'other'" in earlier.line()
    assert (earlier.place / "model.safetensors").exists()
    assert keep_other_model(tmp_path, RUN) is None


def test_what_cannot_be_moved_is_said(tmp_path: Path) -> None:
    leave(tmp_path, 1000)
    (tmp_path / "previous").write_text("in the way")
    with pytest.raises(CheckpointError, match="previous could not be written"):
        keep_earlier(tmp_path, 2000)
    assert (tmp_path / "model.safetensors").exists()


def test_pruning_leaves_rounds_of_another_run_alone(tmp_path: Path) -> None:
    leave(tmp_path, 1000, 4, run="other")
    leave(tmp_path, 2000, 5)
    CheckpointStore(tmp_path, RUN, stages=STAGES).prune()
    assert len(list(tmp_path.glob("1000-*"))) == 4
    assert len(list(tmp_path.glob("2000-*"))) == 3
