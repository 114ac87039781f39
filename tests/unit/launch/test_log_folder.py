from __future__ import annotations

from pathlib import Path

import pytest

from distqat.config import Config
from distqat.errors import ConfigError, RoleError
from distqat.launch.log_folder import PREVIOUS, check_checkpoint_folder, claim_folder, set_aside
from distqat.process import claim_log


def leave(folder: Path, run: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in ("client.log", "server_0.log", "commit_log.jsonl", "summary.json", "monitor.key"):
        (folder / name).write_text(run)
    (folder / "metrics").mkdir()
    (folder / "metrics" / "client.jsonl").write_text(run)


def test_a_new_run_starts_with_an_empty_folder_and_the_same_identity(tmp_path: Path) -> None:
    leave(tmp_path, "first")
    (tmp_path / "server_1.log").touch()
    place = set_aside(tmp_path)
    assert place is not None
    assert {path.name for path in tmp_path.iterdir()} == {PREVIOUS, "monitor.key"}
    assert (place / "commit_log.jsonl").read_text() == "first"
    assert (place / "metrics" / "client.jsonl").read_text() == "first"
    assert not (place / "server_1.log").exists()  # it was empty
    assert set_aside(tmp_path) is None


def test_the_newest_three_are_kept(tmp_path: Path) -> None:
    places = []
    for run in "abcde":
        leave(tmp_path, run)
        places.append(set_aside(tmp_path))
    kept = sorted((tmp_path / PREVIOUS).iterdir())
    assert len(kept) == 3
    assert places[-1] in kept


def test_logs_that_a_live_process_holds_stay(tmp_path: Path) -> None:
    leave(tmp_path, "first")
    held = claim_log(tmp_path, "server", 0)
    set_aside(tmp_path)
    assert (tmp_path / "server_0.log").exists()
    held.release()


@pytest.mark.parametrize("stem", ["run_local", "client"])
def test_two_launchers_do_not_share_a_folder(tmp_path: Path, stem: str) -> None:
    leave(tmp_path, "theirs")
    other = claim_log(tmp_path, stem)
    with pytest.raises(RoleError, match="another launcher writes"):
        claim_folder(tmp_path)
    assert (tmp_path / "commit_log.jsonl").read_text() == "theirs"
    assert not (tmp_path / f"{stem}_1.log").exists()
    other.release()
    claimed = claim_folder(tmp_path)
    assert claimed.path == tmp_path / "run_local.log"
    with pytest.raises(RoleError, match="another launcher writes"):
        claim_folder(tmp_path)
    claimed.release()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(RoleError, match="cannot write logs in"):
        claim_folder(tmp_path / "logs")


def test_a_checkpoint_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    config = Config.model_validate({"param_mirror": {"checkpoint_dir": str(tmp_path / "ck" / "run")}})
    check_checkpoint_folder(config)
    assert list((tmp_path / "ck" / "run").iterdir()) == []
    (tmp_path / "ck" / "run").rmdir()
    (tmp_path / "ck" / "run").write_text("a file")
    with pytest.raises(ConfigError, match=r"ck/run \(File exists\); .* --param-mirror-checkpoint-dir"):
        check_checkpoint_folder(config)
