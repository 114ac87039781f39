from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distqat.environment import SPELL, printable, take_any_text, writable_caches

NARROW = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", b"a -> b \\xfc \xc3\xbc"),
        ("latin-1", b"a -> b \xfc \xc3\xbc"),
        ("utf-8", "a → b ü ".encode() + b"\xc3\xbc"),
    ],
)
def test_what_a_locale_cannot_spell_is_written_in_what_it_has(
    monkeypatch: pytest.MonkeyPatch, encoding: str, written: bytes
) -> None:
    raw = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    take_any_text()
    print("a → b ü \udcc3\udcbc", end="", flush=True)
    assert raw.getvalue() == written


def test_a_stream_that_is_no_file_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)  # pythonw, or a closed one
    take_any_text()


def test_bytes_of_file_names_can_be_printed() -> None:
    assert printable("gr\udcc3\udcbcn") == "grün"
    assert printable("gr\udcfcn") == "gr\ufffdn"
    assert printable("gr\ud800n") == "gr\\ud800n"  # from JSON: no byte of a name
    assert b"gr\xfcn".decode("utf-8", SPELL) == "gr\udcfcn"


@pytest.mark.parametrize("flags", [[], ["-X", "utf8=0"]])
def test_a_command_that_could_hold_ascii_alone_starts_again(flags: list[str]) -> None:
    code = "import sys; from distqat.environment import prepare; prepare(); print(ascii(sys.argv[1]))"
    ran = subprocess.run(
        [sys.executable, *flags, "-c", code, "grün"],
        env={**os.environ, **NARROW},
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert ran.stdout.decode().strip() == ("'gr\\udcc3\\udcbcn'" if flags else "'gr\\xfcn'")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("HF_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "hf"


@pytest.fixture
def shut(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Take away the right to write in a folder; tests may run as root, who has every right."""
    closed: list[Path] = []
    allowed = os.access

    def access(path: os.PathLike[str], mode: int) -> bool:
        below = any(Path(path).is_relative_to(folder) for folder in closed)
        return not (mode & os.W_OK and below) and allowed(path, mode)

    monkeypatch.setattr(os, "access", access)
    return closed.append


def test_caches_that_can_be_written_stay(home: Path) -> None:
    assert writable_caches() is None
    assert "HF_DATASETS_CACHE" not in os.environ


def test_caches_that_cannot_be_written_are_moved(
    home: Path, shut: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    shut(home)
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_XET_CACHE"):
        monkeypatch.setenv(name, "")  # so that it is put back
    base = home.parent / "tmp" / f"distqat-cache-{os.geteuid()}"
    assert writable_caches() == f"{home} cannot be written; what is fetched is kept in {base} (set HF_HOME)"
    assert os.environ["HF_DATASETS_CACHE"] == str(base / "datasets")
    assert os.environ["HF_HUB_CACHE"] == str(base / "hub")
    assert writable_caches() is None


def test_models_in_a_cache_that_may_only_be_read_are_found(
    home: Path, shut: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "hub").mkdir(parents=True)
    shut(home)
    for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_XET_CACHE"):
        monkeypatch.setenv(name, "")
    assert writable_caches() is not None
    assert "HF_HUB_CACHE" not in os.environ


def test_a_file_where_the_cache_should_be(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write_text("")
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_XET_CACHE"):
        monkeypatch.setenv(name, "")
    assert writable_caches() is not None
