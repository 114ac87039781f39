"""What is found at a local path."""

from __future__ import annotations

from pathlib import Path

import pytest

from distqat.config import load_config
from distqat.data.sources.local_files import class_of, find_files, is_local, split_of
from distqat.errors import DataError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    return root


@pytest.mark.parametrize("name", ["./data", "../data", "/data", "~/data", ".", ".."])
def test_paths(name: str) -> None:
    assert is_local(name)


@pytest.mark.parametrize("name", ["digits", "uoft-cs/cifar10", "data/parquet", ".hidden", "wikitext"])
def test_names(name: str) -> None:
    assert not is_local(name)


@pytest.mark.parametrize(
    ("place", "split"),
    [
        ("test/cat/1.png", "test"),
        ("validation/1.parquet", "validation"),
        ("train-00000-of-00002.parquet", "train"),
        ("test.txt", "test"),
        ("valid_1.json", "valid"),
        ("testing.txt", "train"),
        ("developers/1.png", "train"),
        ("cats/test.png", "train"),
        ("part-3.parquet", "train"),
        ("Test/cat/1.png", "test"),
        ("TRAIN/cat/1.png", "train"),
        ("Testing/cat/1.png", "test"),
        ("Training/cat/1.png", "train"),
        ("archive/Val/cat/1.png", "val"),
        ("cat/test/1.png", "test"),
        ("train/test/1.png", "train"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("Valid.jsonl", "valid"),
        ("2024/part-3.parquet", "train"),
    ],
)
def test_splits(place: str, split: str) -> None:
    assert split_of(Path(place)) == split


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("cat/1.png", "cat"),
        ("Train/cat/1.png", "cat"),
        ("archive/Train/cat/1.png", "cat"),
        ("cat/train/1.png", "cat"),
        ("train/test/1.png", "test"),
        ("a/b/1.png", "b"),
        ("train/1.png", None),
        ("1.png", None),
    ],
)
def test_classes(place: str, name: str | None) -> None:
    assert class_of(Path(place)) == name


def test_files_are_sorted_and_others_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "b.parquet", "a.parquet", "test.parquet", "README.md", ".cache/c.parquet", ".d.parquet")
    found = find_files(str(tmp_path))
    assert found.kind == "parquet"
    assert {split: [file.name for file in files] for split, files in found.splits.items()} == {
        "train": ["a.parquet", "b.parquet"],
        "test": ["test.parquet"],
    }
    assert str(found.left_out) == (
        f"2 of 5 files left out: 1 beginning with a dot (first: {tmp_path}/.d.parquet), "
        f"1 ending in .md (first: {tmp_path}/README.md)"
    )


def test_the_fingerprint_is_of_names_and_sizes(tmp_path: Path) -> None:
    first = touch(tmp_path / "one", "a/1.png", "b/2.png")
    copied = touch(tmp_path / "two", "b/2.png", "a/1.png")
    other = touch(tmp_path / "three", "a/1.png", "b/3.png")
    prints = [find_files(str(root)).fingerprint for root in (first, copied, other)]
    assert prints[0] == prints[1] != prints[2]
    (copied / "b" / "2.png").write_bytes(b"longer than it was")
    assert find_files(str(copied)).fingerprint != prints[0]


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file or folder '.*/nothing' \(looked for /"):
        find_files(str(tmp_path / "nothing"))
    touch(tmp_path, "notes.md")
    with pytest.raises(DataError, match=r"holds no file that can be read; known endings: \.png, .*\.parquet"):
        find_files(str(tmp_path))
    touch(tmp_path, "a.txt", "b.parquet")
    with pytest.raises(
        DataError, match=r"several kinds: parquet \(b\.parquet\), text \(a\.txt\); name a folder"
    ):
        find_files(str(tmp_path))
    assert find_files(str(tmp_path / "a.txt")).splits == {"train": [tmp_path / "a.txt"]}


def test_data_may_lie_beside_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "configs" / "data", "a/1.png")
    (tmp_path / "configs" / "run.yaml").write_text("data: {dataset_name: ./data}\n")
    monkeypatch.chdir(tmp_path)
    config = load_config(tmp_path / "configs" / "run.yaml")
    assert find_files(config.data.dataset_name).root == tmp_path / "configs" / "data"
    with pytest.raises(DataError, match=rf"looked for {tmp_path}/none and {tmp_path}/configs/none"):
        find_files("./none")
    load_config(None)
