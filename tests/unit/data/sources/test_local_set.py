"""Real small files of every kind: order, positions, what is held out, what is told when they do not fit."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distqat.data.open_source import open_source
from distqat.data.options import DataOptions
from distqat.data.rows import account_of, origin_of
from distqat.data.source import Item, NoData, Source, class_names
from distqat.errors import DataError
from distqat.tasks import TaskSettings, get_task

pq = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")
ROWS = 40


def source(path: Path, *, seed: int = 1, **options: Any) -> Source:
    given = {"dataset_name": str(path), "shuffle_buffer": 7, "img_size": 8, "num_channels": 1, **options}
    return open_source(DataOptions.model_validate(given), seed=seed)


def drain(source: Source, count: int) -> list[Item]:
    items: list[Item] = []
    while len(items) < count:
        items += source.take(count - len(items))
    return items


def labels(samples: Iterable[Any]) -> list[int]:
    return [int((each.sample if isinstance(each, Item) else each)["label"]) for each in samples]


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path: Path, first: int, count: int) -> None:
    """Images of one grey each, which the label names."""
    import datasets

    schema = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")}).arrow_schema
    numbers = list(range(first, first + count))
    images = [{"bytes": png(i), "path": None} for i in numbers]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"img": images, "label": numbers}, schema=schema), path)


def parquet_folder(root: Path) -> Path:
    for part in (1, 0):
        parquet(root / f"part-{part}.parquet", 20 * part, 20)
    return root


def jsonl(root: Path) -> Path:
    lines = [json.dumps({"image": [[i, i], [i, i]], "label": i}) for i in range(ROWS)]
    (root / "rows.jsonl").write_text("\n".join(lines))
    return root / "rows.jsonl"


def images(root: Path) -> Path:
    """Two classes; the grey of an image tells it apart."""
    for i in reversed(range(ROWS)):
        path = root / ("cats" if i % 2 else "ants") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(i))
    return root


def grey(sample: Any) -> int:
    """The number of a sample of any of the above."""
    task = get_task("cv", TaskSettings(num_channels=1, img_size=8))
    return round((float(task.collate([sample]).inputs["x"][0, 0, 4, 4]) + 1) * 127.5)


@pytest.mark.parametrize("make", [parquet_folder, jsonl])
def test_a_stream_is_repeatable_and_complete(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    one, again, other = source(path), source(path), source(path, seed=2)
    held = labels(one.heldout())
    assert held == list(range(8))  # a fifth
    first = drain(one, 64)
    assert [item.place for item in first] == [(e, i) for e in range(2) for i in range(32)]
    epochs = [labels(first[:32]), labels(first[32:]), labels(drain(other, 32))]
    assert [sorted(epoch) for epoch in epochs] == [list(range(8, ROWS))] * 3
    assert len(set(map(tuple, epochs))) == 3
    again.restore({"epoch": 1, "index": 11})
    assert labels(drain(again, 5)) == epochs[1][11:16]
    assert one.order == again.order != other.order
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"image": [[1]], "label": 1}) + "\n")
    if make is jsonl:
        assert source(path).order != one.order  # a position in the old file means nothing in the new one


def test_a_split_is_held_out_whole(tmp_path: Path) -> None:
    parquet_folder(tmp_path / "train")
    parquet(tmp_path / "test" / "all.parquet", 40, 5)
    held_out = source(tmp_path)
    assert labels(held_out.heldout()) == list(range(40, 45))
    assert sorted(labels(drain(held_out, 40))) == list(range(40))
    of_test = source(tmp_path, dataset_split="test")  # what is trained on by default is never held out
    assert labels(of_test.heldout()) == [40]
    assert sorted(labels(drain(of_test, 4))) == [41, 42, 43, 44]
    with pytest.raises(DataError, match="has no split 'dev'; known: test, train"):
        source(tmp_path, dataset_split="dev")


def test_images_by_class(tmp_path: Path) -> None:
    one, again, other = (source(images(tmp_path), seed=seed) for seed in (1, 1, 2))
    held = [grey(sample) for sample in one.heldout()]
    assert held == [grey(sample) for sample in other.heldout()]
    first = drain(one, 64)
    numbers = [grey(item.sample) for item in first]
    assert labels(first) == [number % 2 for number in numbers]  # ants are 0, cats are 1
    assert sorted(numbers[:32] + held) == sorted(numbers[32:] + held) == list(range(ROWS))
    assert numbers[:32] != numbers[32:]
    again.restore({"epoch": 1, "index": 30})
    assert [grey(item.sample) for item in again.take(2)] == numbers[62:]
    assert {len(set(labels(first[at : at + 8]))) for at in range(0, 32, 8)} == {2}  # not class after class


def test_image_splits_share_their_classes(tmp_path: Path) -> None:
    for place in ("train/ants/1.png", "train/bees/2.png", "train/cats/3.png", "validation/cats/4.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(png(int(place[-5])))
    found = source(tmp_path)
    assert labels(found.heldout()) == [2]
    assert sorted(labels(drain(found, 3))) == [0, 1, 2]
    (tmp_path / "train" / "5.png").write_bytes(png(5))
    with pytest.raises(DataError, match=r"train/5\.png lies in no folder that names its class"):
        source(tmp_path)


def test_text_is_packed_from_documents_between_empty_lines(tmp_path: Path) -> None:
    texts = [f"line {i}\nof it" for i in range(20)]
    (tmp_path / "all.txt").write_text("\n\n".join(texts))
    packed = source(tmp_path / "all.txt", task_type="llm", sequence_length=16, shuffle_buffer=1)
    tokens = [int(t) for sample in packed.heldout() for t in list(sample["tokens"])[:16]]
    said = "".join("\n\n" if t == 256 else chr(t) for t in tokens)
    assert said.startswith("line 0\nof it\n\nline 1\nof it")
    assert "line 4" not in said
    assert "tokenizer=bytes" in packed.order
    first = drain(packed, 2)
    assert bytes(first[0].sample["tokens"][:6].tolist()) == b"line 4"


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a single document")
    with pytest.raises(
        DataError, match=r"one\.txt' has 1 samples, too few to hold some of them out: add some"
    ):
        source(tmp_path / "one.txt")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"broken\.parquet cannot be read: .*[Pp]arquet"):
        source(tmp_path / "broken.parquet")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(DataError, match=r"broken\.jsonl, line 2 is not JSON: "):
        source(tmp_path / "broken.jsonl")
    with pytest.raises(DataError, match="files have no configurations"):
        source(tmp_path / "one.txt", dataset_config="plain")
    vanishing = source(images(tmp_path / "images")) if (tmp_path / "images").mkdir() is None else None
    assert vanishing is not None
    for path in (tmp_path / "images").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"the image .*\.png cannot be read: No such file"):
        vanishing.take(1)


@pytest.mark.parametrize("name", ["run[1]", "what?", "50*", "{a,b}", "a b#c", "größe", "x::y"])
@pytest.mark.parametrize("make", [parquet_folder, jsonl, images])
def test_a_path_is_taken_as_it_is_written(make: Callable[[Path], Path], name: str, tmp_path: Path) -> None:
    """Also beside folders that it would match as a pattern."""
    for decoy in ("run1", "whatx", "500", "a"):
        (tmp_path / decoy).mkdir()
        (tmp_path / decoy / "rows.txt").write_text("the wrong folder")
    (tmp_path / name).mkdir()
    found = source(make(tmp_path / name))
    numbers = labels(found.heldout()) + labels(drain(found, 32))
    assert sorted(numbers) == (list(range(ROWS)) if make is not images else sorted([0, 1] * 20))


def test_splits_in_capitals_and_below_other_folders(tmp_path: Path) -> None:
    for split, count in (("Train", 6), ("Test", 5)):
        for name in ("a", "b"):
            for i in range(count):
                path = tmp_path / "kaggle" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(i))
    for root in (tmp_path, tmp_path / "kaggle"):
        found = source(root)
        assert class_names(found) == ["a", "b"]
        assert labels(found.heldout()) == [0] * 5 + [1] * 5
        assert len([item for item in drain(found, 13) if item.epoch == 0]) == 12
    assert len(labels(source(tmp_path, dataset_split="TEST").heldout())) == 2  # a fifth of the ten in it
    parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", 0, 10)
    parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", 10, 3)
    assert labels(source(tmp_path / "hub").heldout()) == [10, 11, 12]


def test_what_is_left_out_is_counted_with_the_reason(tmp_path: Path) -> None:
    texts = [
        None if i in (30, 31) else "" if i == 33 else f"document {i} of some length" for i in range(ROWS)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "README.md").write_text("what this is")
    found = source(tmp_path, task_type="llm", sequence_length=8)
    assert account_of(found)["complete"] is False
    drain(found, 400)
    told = account_of(found)
    assert told["rows"] == {
        "read": 32,
        "left_out": {"with null in place of text": 2, "with an empty text": 1},
    }
    assert told["files"] == {"read": 2, "left_out": {"ending in .md": 1}}
    assert told["complete"] is True
    assert "3 of 32 rows left out: 2 with null in place of text (first: " in told["line"]
    assert "rows.jsonl, line 31)" in told["line"]
    of_images = account_of(
        source(images(tmp_path / "pictures")) if not (tmp_path / "pictures").mkdir() else None
    )
    assert of_images["line"] == "none of 40 files left out"


def test_an_image_without_bytes_is_found_at_the_start(tmp_path: Path) -> None:
    images(tmp_path)
    for name in ("cats/07.png", "cats/09.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"the image .*cats/07\.png is empty \(0 bytes\), and 1 more"):
        source(tmp_path)


def test_rows_say_where_they_come_from(tmp_path: Path) -> None:
    rows = [origin_of(item.sample) for item in drain(source(parquet_folder(tmp_path / "p")), 32)]
    assert sorted(rows)[-1] == f"{tmp_path}/p/part-1.parquet, row 9 (from 0)"
    (tmp_path / "i").mkdir()
    assert origin_of(source(images(tmp_path / "i")).take(1)[0].sample).endswith(".png")
    lines = {origin_of(item.sample) for item in drain(source(jsonl(tmp_path)), 32)}
    assert lines == {f"{tmp_path}/rows.jsonl, line {n}" for n in range(9, 41)}


def test_classes_are_named_where_the_data_name_them(tmp_path: Path) -> None:
    (tmp_path / "folders").mkdir()
    assert class_names(source(images(tmp_path / "folders"))) == ["ants", "cats"]
    assert class_names(source(jsonl(tmp_path))) == []
    named = datasets_features(["ant", "cat"])
    pictures = [{"bytes": png(i), "path": None} for i in range(20)]
    table = pa.table({"img": pictures, "label": [i % 2 for i in range(20)]}, schema=named.arrow_schema)
    pq.write_table(table, tmp_path / "named.parquet")
    assert class_names(source(tmp_path / "named.parquet")) == ["ant", "cat"]
    assert class_names(open_source(DataOptions(dataset_name="digits", img_size=8), seed=0)) == []
    assert class_names(NoData()) == []


def datasets_features(names: list[str]) -> Any:
    import datasets

    return datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
