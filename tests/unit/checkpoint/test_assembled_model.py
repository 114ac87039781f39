from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file
from tests.unit.checkpoint.states import RUN, moments, same_bits, shard_state, trainer_part

from distqat.checkpoint import CheckpointStore, assemble, verify, write_model, write_trainer_part
from distqat.checkpoint.assembled_model import join
from distqat.checkpoint.manifest import SHARED
from distqat.config import load_config
from distqat.distributed.assembly import stage_factory
from distqat.distributed.serving.committed_state import initial
from distqat.errors import CheckpointError
from distqat.launch import cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rounds 1 and 2 are whole; of round 3 only the front is there."""
    store = CheckpointStore(tmp_path / "run", RUN)
    for round, stage in ((1, "front"), (1, "back"), (2, "front"), (2, "back"), (3, "front")):
        private = {f"{stage}.0.0.0": moments(round)}
        store.write(stage, shard_state(round, stage=stage, size=4, private=private))
    return tmp_path / "run"


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_the_newest_round_that_all_have(folder: Path) -> None:
    model = assemble(folder)
    assert (model.round, model.stages) == (2, ("front", "back"))
    assert "lacks stage back" in model.skipped[0]
    expected = {}
    for stage in model.stages:
        for key, tensor in shard_state(2, stage=stage, size=4).shared.items():
            if not key.startswith("outer/"):
                expected[key.partition("/")[2]] = tensor
    assert same_bits(model.tensors, expected)


def test_a_broken_round_gives_way_to_the_one_before(folder: Path) -> None:
    spoil(folder / "0000-000002" / "back" / SHARED)
    model = assemble(folder)
    assert model.round == 1
    assert "0000-000002" in model.skipped[1]
    with pytest.raises(CheckpointError, match=r"no round 2 that can be assembled.*bytes changed"):
        assemble(folder, 2)


def test_names_are_prefixed_only_where_stages_share_one() -> None:
    own = {"front": {"front.w": torch.ones(2)}, "back": {"back.w": torch.zeros(2)}}
    assert same_bits(join(own), {"front.w": torch.ones(2), "back.w": torch.zeros(2)})
    shared = {"front": {"w": torch.ones(2)}, "back": {"w": torch.zeros(2)}}
    assert same_bits(join(shared), {"front.w": torch.ones(2), "back.w": torch.zeros(2)})


def test_the_command_gives_the_state_dict_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "model_pipeline": {
            "pipeline": [{"model_name": f"mlp.{s}", "num_classes": 10} for s in ("front", "back")]
        },
        "quant": {"enabled": True},
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings))
    config = load_config(path)
    modules = {stage: stage_factory.build_module(config, stage) for stage in config.stages}
    for stage, module in modules.items():
        shared = initial(module)
        state = shard_state(
            0, shared=shared.tensors(), digest=shared.digest, agreement={"stages": config.stages}
        )
        CheckpointStore(tmp_path / "run", RUN).write(stage, state)
    out = tmp_path / "new" / "model.safetensors"
    for more in ([], ["--config-path", str(path)]):
        assert cli.main(["checkpoint", "assemble", str(tmp_path / "run"), "--out", str(out), *more]) == 0
        want = join({stage: module.state_dict() for stage, module in modules.items()})
        assert same_bits(load_file(out), want)
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    assert "round 0, stages front, back" in capsys.readouterr().out
    with safetensors.safe_open(out, "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_names_that_the_model_lacks_are_left_out_and_missing_ones_named(folder: Path) -> None:
    names = {stage: [f"{stage}.weight"] for stage in ("front", "back")}
    assert set(assemble(folder, names=names).tensors) == {"front.weight", "back.weight"}
    with pytest.raises(CheckpointError, match=r"lacks 'other'"):
        assemble(folder, names={**names, "back": ["other"]})


def test_stages_of_two_runs_are_not_joined(folder: Path) -> None:
    CheckpointStore(folder, "other").write("back", shard_state(3, stage="back"))
    with pytest.raises(CheckpointError, match=f"different runs: {RUN}, other"):
        assemble(folder, 3)


def test_verify_reads_every_byte(folder: Path) -> None:
    assert [report.problems for report in verify(folder)] == [()] * 5
    assert len(verify(folder, 3)) == 1
    with pytest.raises(CheckpointError, match="no checkpoint of round 9"):
        verify(folder, 9)


def test_verify_names_file_and_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checkpoint", "verify", str(folder)]) == 0
    broken = [folder / "0000-000001" / "front" / SHARED]
    broken += (folder / "0000-000002" / "back").glob("inner-*")
    for path in broken:
        spoil(path)
    assert cli.main(["checkpoint", "verify", str(folder)]) == 1
    said = capsys.readouterr().out
    assert all(f"BROKEN  {path} has digest" in said for path in broken)
    assert "3 of 5 are as they were written" in said
    assert cli.main(["checkpoint", "verify", str(folder), "--round", "3"]) == 0


def test_list_shows_rounds_and_gaps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "0000-000001" / "front" / "manifest.json").write_text("{")
    assert cli.main(["checkpoint", "list", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["0", "1"], ["0", "2"], ["0", "3"]]
    assert lines[1].endswith("back  front (broken)".replace("  ", " "))
    assert lines[2].endswith("front back")
    assert lines[3].endswith("front back (missing)")


def test_list_shows_the_newest_marks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def listed() -> list[str]:
        assert cli.main(["checkpoint", "list", str(folder)]) == 0
        return capsys.readouterr().out.splitlines()[4:]

    def mark(stage: str, name: str, step: int) -> None:
        private = {f"{stage}.0.0.0": moments(step)}
        store.write(stage, shard_state(3, stage=stage, size=4, step=step, mark=name, private=private))

    store = CheckpointStore(folder, RUN)
    assert listed() == []
    mark("front", "0-7-000032", 32)
    assert listed()[1:] == [
        "front  0-7-000032   0           3      32    front.0.0.0  no",
        "back   -            -           -      -     -            -",
        "newest mark of all stages and their trainer: none",
    ]
    mark("back", "0-7-000032", 31)
    mark("back", "0-7-000035", 34)
    write_trainer_part(folder, trainer_part(32))
    heading, front, back, common = listed()
    assert heading == "stage  newest mark  generation  round  step  replica      all stages"
    assert front == "front  0-7-000032   0           3      32    front.0.0.0  yes"
    assert back == "back   0-7-000035   0           3      34    back.0.0.0   no"
    assert common == "newest mark of all stages and their trainer: 0-7-000032"


def test_verify_checks_marked_parts_that_are_not_the_newest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CheckpointStore(folder, RUN)
    for step in (31, 32):
        private = {"front.0.0.0": moments(step)}
        store.write("front", shard_state(3, size=4, step=step, mark=f"0-7-{step:06d}", private=private))
    (older,) = (folder / "0000-000003" / "front").glob("inner-*-000031-*")
    spoil(older)
    assert cli.main(["checkpoint", "verify", str(folder)]) == 1
    assert f"BROKEN  {older} has digest" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["list", "verify", "assemble"])
def test_an_empty_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    more = ["--out", str(tmp_path / "x")] if command == "assemble" else []
    assert cli.main(["checkpoint", command, str(tmp_path / "none"), *more]) == 1
    assert "holds no" in capsys.readouterr().err


def test_a_model_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="could not be written"):
        write_model(tmp_path / "file" / "model.safetensors", {}, {})
