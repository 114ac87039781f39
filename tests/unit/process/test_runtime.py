from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from distqat.distributed.process.runtime import host_id, runtime_dir
from distqat.errors import RoleError


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("DISTQAT_HOST_ID", raising=False)
    return tmp_path


def test_it_is_made_for_this_user_alone(base: Path) -> None:
    path = runtime_dir()
    assert path == base / "distqat"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert runtime_dir() == path


def test_without_xdg_it_is_in_the_temporary_folder(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(base))
    assert runtime_dir() == base / f"distqat-{os.geteuid()}"


def test_a_folder_that_others_may_enter_is_refused(base: Path) -> None:
    (base / "distqat").mkdir()
    (base / "distqat").chmod(0o755)
    with pytest.raises(RoleError, match="chmod 700"):
        runtime_dir()


def test_a_link_is_refused(base: Path) -> None:
    (base / "elsewhere").mkdir(mode=0o700)
    (base / "distqat").symlink_to(base / "elsewhere")
    with pytest.raises(RoleError, match="not a folder of this user"):
        runtime_dir()


def test_a_folder_of_somebody_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime_dir()
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(RoleError, match="not a folder of this user"):
        runtime_dir()


def test_the_host_id_is_stable_and_can_be_given(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = host_id()
    assert first == host_id()
    assert len(first) == 16
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base / "other"))  # another container: no common sockets
    assert host_id() != first
    monkeypatch.setenv("DISTQAT_HOST_ID", "left")
    assert host_id() == "left"
