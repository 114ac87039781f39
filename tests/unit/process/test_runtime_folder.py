from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from distqat.errors import RoleError
from distqat.process import runtime_folder
from distqat.process.runtime_folder import host_id, moved, runtime_dir, short_folder


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


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where folders go whose own path is too long."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(runtime_folder, "SHORT_FOLDERS", ("/nowhere", folder))
        yield Path(folder)


@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "TMPDIR"])
@pytest.mark.parametrize("name", ["long" * 30, "ü" * 60], ids=["long", "bytes"])
def test_a_folder_whose_sockets_would_not_fit_is_moved(
    base: Path, short: Path, monkeypatch: pytest.MonkeyPatch, variable: str, name: str
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", None)
    for part in ("one", "two"):  # one path component holds 255 bytes at most, and two folders are two
        (base / name / part).mkdir(parents=True)
    monkeypatch.setenv(variable, str(base / name / "one"))
    path = runtime_dir()
    assert path.parent == short
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert runtime_dir() == path
    said = moved() or ""
    assert str(path) in said
    assert str(runtime_folder._wanted()) in said
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path / ("x" * (runtime_folder.LONGEST_NAME - 1))))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv(variable, str(base / name / "two"))
    assert runtime_dir() != path


def test_the_longest_name_that_fits_stays_where_it_is(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = runtime_folder.ROOM - runtime_folder.LONGEST_NAME - len("/distqat")
    fits = short / ("x" * (room - len(str(short)) - 1))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(fits))
    assert runtime_dir() == fits / "distqat"
    assert moved() is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime_dir() / ("x" * (runtime_folder.LONGEST_NAME - 1))))
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{fits}x")
    assert runtime_dir().parent == short


def test_a_private_folder_is_made_where_sockets_fit(
    base: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(base / ("long" * 30)))
    assert short_folder() == short
    monkeypatch.setattr(runtime_folder, "SHORT_FOLDERS", ("/nowhere",))
    with pytest.raises(RoleError, match=r"set XDG_RUNTIME_DIR to .* at most 67 bytes"):
        short_folder()
