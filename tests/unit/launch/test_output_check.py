from __future__ import annotations

from pathlib import Path

import pytest

from distqat.errors import ConfigError
from distqat.launch.output_check import check_output


def test_the_folder_of_an_output_is_made(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b.json", "--json")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert not list((tmp_path / "a").iterdir())
    check_output(tmp_path / "exported" / "mlp", "--out", folder=True)
    assert (tmp_path / "exported" / "mlp").is_dir()


@pytest.mark.parametrize(
    ("path", "folder", "said"),
    [
        ("there", False, "--out .*/there is a folder; give the name of a file in it"),
        ("file/x.json", False, "--out .*/x.json: .*/file is a file, not a folder"),
        ("file", True, "--out .*/file: .*/file is a file, not a folder"),
        ("file/below/x.json", False, "cannot make the folder .*/file/below: Not a directory"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, path: str, folder: bool, said: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match=said):
        check_output(tmp_path / path, "--out", folder=folder)


def test_a_folder_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # nothing is shut to root
    with pytest.raises(ConfigError, match="is not writable"):
        check_output(tmp_path / "x.json", "--json")
