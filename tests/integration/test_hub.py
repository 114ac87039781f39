"""Hub data sets from a stand-in on loopback.

The Hugging Face libraries read the hub's address when they are imported, so each case is a process.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from tests.integration.hub_stand_in import SHA, TOKEN, hub, run

pytest.importorskip("PIL", reason="Pillow is not installed")

__all__ = ["hub"]  # a fixture
TRAIN, HELD, HELDOUT_SAMPLES = 40, 10, 1000


def parquet(first: int, count: int) -> bytes:
    """Images of one grey each, whose value and label tell the sample."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def png(value: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("L", (8, 8), value % 256).save(buffer, "PNG")
        return buffer.getvalue()

    schema = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")}).arrow_schema
    numbers = range(first, first + count)
    images = [{"bytes": png(i), "path": None} for i in numbers]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"img": images, "label": list(numbers)}, schema=schema), buffer)
    return buffer.getvalue()


def pictures(column: str, mode: str, sizes: list[tuple[int, int]], labels: list[int]) -> bytes:
    """Encoded images of these (width, height), of one colour each; JPEG and PNG in turn."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def encoded(number: int, size: tuple[int, int]) -> bytes:
        buffer = io.BytesIO()
        grey = 10 * number
        image = Image.new(mode, size, grey if mode == "L" else (grey,) * 3)
        image.save(buffer, "JPEG" if number % 2 else "PNG")
        return buffer.getvalue()

    names = [f"class {i}" for i in range(max(labels) + 1)]
    features = {column: datasets.Image(), "label": datasets.ClassLabel(names=names or ["unknown"])}
    schema = datasets.Features(features).arrow_schema
    images = [{"bytes": encoded(i, size), "path": f"{i}.jpg"} for i, size in enumerate(sizes)]
    buffer = io.BytesIO()
    pq.write_table(pa.table({column: images, "label": labels}, schema=schema), buffer)
    return buffer.getvalue()


def image_sets() -> dict[str, dict[str, bytes]]:
    """Columns, splits, modes and sizes of CIFAR-10, MNIST and ImageNet, with 20 samples to train on."""
    twenty, photos = list(range(20)), [(20 + 3 * i, 30 - i) for i in range(20)]
    cifar, mnist = ([(side, side)] * 20 for side in (32, 28))
    return {
        "acme/cifar10": {
            "data/train-00000-of-00001.parquet": pictures("img", "RGB", cifar, twenty),
            "data/test-00000-of-00001.parquet": pictures("img", "RGB", cifar[:4], twenty[:4]),
        },
        "acme/mnist": {
            "data/train-00000-of-00001.parquet": pictures("image", "L", mnist, twenty),
            "data/test-00000-of-00001.parquet": pictures("image", "L", mnist[:4], twenty[:4]),
        },
        "acme/imagenet": {
            "data/train-00000-of-00001.parquet": pictures("image", "RGB", photos, twenty),
            "data/test-00000-of-00001.parquet": pictures("image", "RGB", photos[:4], [-1] * 4),
            "data/validation-00000-of-00001.parquet": pictures("image", "L", photos[:4], twenty[:4]),
        },
    }


@pytest.fixture(scope="module")
def repositories() -> dict[str, dict[str, bytes]]:
    small = {f"data/train-{i:05}-of-00002.parquet": parquet(20 * i, 20) for i in range(2)}
    held = {"data/test-00000-of-00001.parquet": parquet(TRAIN, HELD)}
    alone = {"data/train-00000-of-00001.parquet": parquet(0, HELDOUT_SAMPLES + 20)}
    return {"acme/small": {**small, **held}, "acme/alone": alone, **image_sets()}


def test_a_stream_is_repeatable_and_complete(hub: Any, tmp_path: Path) -> None:
    code = """
name = {"dataset_name": "acme/small"}
a, b, other = (open_source(options(**name), seed=s) for s in (1, 1, 2))
first = labels(drain(a, 80))
state = a.state()
later = labels(drain(a, 20))
positions = []
for at in ({"epoch": 0, "index": 0}, {"epoch": 0, "index": 11}, {"epoch": 1, "index": 39}, state):
    b.restore(at)
    positions.append(labels(drain(b, 5)))
task = get_task("cv", TaskSettings(num_classes=100, num_channels=1, img_size=8))
b.restore({"epoch": 0, "index": 0})
pixels = task.collate([i.sample for i in drain(b, 3)]).inputs["x"][:, 0, 4, 4]
grey = [round((v + 1) * 127.5) for v in pixels.tolist()]
print(json.dumps([first, later, labels(drain(other, 40)), positions, state, a.order,
                  [s["label"] for s in a.heldout()], grey]))
"""
    first, later, other, positions, state, order, held, grey = run(code, hub.address, tmp_path)
    assert [row[:2] for row in first] == [[e, i] for e in range(2) for i in range(TRAIN)]
    for epoch in (first[:TRAIN], first[TRAIN:], other):
        assert sorted(row[2] for row in epoch) == list(range(TRAIN))
    assert len({tuple(row[2] for row in epoch) for epoch in (first[:TRAIN], first[TRAIN:], other)}) == 3
    assert positions[:2] == [first[0:5], first[11:16]]
    assert positions[2][:1] == first[79:80]
    assert positions[3] == later[:5]
    assert state == {"epoch": 1, "index": 40}
    assert order == f"acme/small/default/train@{SHA} seed=1 buffer=7"
    assert held == list(range(TRAIN, TRAIN + HELD))
    assert grey == [row[2] for row in first[:3]]
    assert {authorization for _, authorization in hub.seen} == {f"Bearer {TOKEN}"}


def test_without_a_test_split_the_first_samples_are_held_out(hub: Any, tmp_path: Path) -> None:
    code = """
source = open_source(options(dataset_name="acme/alone"), seed=1)
print(json.dumps([[s["label"] for s in source.heldout()], labels(drain(source, 21))]))
"""
    held, rows = run(code, hub.address, tmp_path)
    assert held == list(range(HELDOUT_SAMPLES))
    assert sorted(row[2] for row in rows[:20]) == list(range(HELDOUT_SAMPLES, HELDOUT_SAMPLES + 20))
    assert rows[20][:2] == [1, 0]


IMAGE_SETS = [  # name, the task's settings and options, how white is normalised
    ("acme/cifar10", 3, {"augment": "crop_flip", "normalize": "cifar10"}, (1 - 0.4914) / 0.2470),
    ("acme/mnist", 1, {"augment": "shift", "padding": 2, "normalize": "mnist"}, (1 - 0.1307) / 0.3081),
    ("acme/imagenet", 3, {"augment": "resized_crop", "normalize": "imagenet"}, (1 - 0.485) / 0.229),
]


def test_image_sets_are_augmented_by_place_and_normalised(hub: Any, tmp_path: Path) -> None:
    """A run that goes on from a position gets the same bits; what is held out is only normalised."""
    code = """
found = []
def pixels(task, items):
    return task.collate_at([i.sample for i in items], [i.place for i in items]).inputs["x"]
for name, channels, extra, white in json.loads(%r):
    data = options(dataset_name=name, num_channels=channels, img_size=16, options=extra)
    settings = TaskSettings(num_classes=20, num_channels=channels, img_size=16, seed=3, options=extra)
    task = get_task("cv", settings)
    first, second = open_source(data, seed=3), open_source(data, seed=3)
    begin = drain(first, 5)
    state = first.state()
    later = pixels(task, drain(first, 20))
    second.restore(state)
    again = pixels(get_task("cv", settings), drain(second, 20))
    plain = task.collate([i.sample for i in begin]).inputs["x"]
    held = task.collate(list(first.heldout()))
    black, _, value = held.inputs["x"][:3, 0, 8, 8].tolist()  # pictures of grey 0, 10, 20
    grey = black + 20 / 255 * (white - black)
    found.append([bool((later == again).all()), bool((pixels(task, begin) != plain).any()),
                  list(later.shape), held.labels["y"].tolist(), abs(value - grey) < 0.01])
print(json.dumps(found))
"""
    found = run(code % json.dumps(IMAGE_SETS), hub.address, tmp_path)
    for (name, channels, _, _), (same, changed, shape, labels, normalised) in zip(
        IMAGE_SETS, found, strict=True
    ):
        assert same, name
        assert changed or name == "acme/imagenet"  # any part of a picture of one colour looks the same
        assert shape == [20, channels, 16, 16]
        assert labels == [0, 1, 2, 3]  # the validation split, not the test split without labels
        assert normalised, name


WRONG = """
from distqat.errors import DataError
said = {}
for key, kw in json.loads(%r).items():
    try:
        drain(open_source(options(**kw), seed=1), 1)
    except DataError as error:
        said[key] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""


def test_wrong_names_are_explained(hub: Any, tmp_path: Path) -> None:
    cases = {
        "name": {"dataset_name": "acme/none"},
        "path": {"dataset_name": "acme/../secret"},
        "config": {"dataset_name": "acme/small", "dataset_config": "nope"},
        "split": {"dataset_name": "acme/small", "dataset_split": "nope"},
    }
    said = run(WRONG % json.dumps(cases), hub.address, tmp_path)
    assert {kind for kind, _ in said.values()} == {"DataError"}
    assert "HF_TOKEN" in said["name"][1]
    assert "is not a name of a data set" in said["path"][1]
    assert "Available: ['default']" in said["config"][1]
    assert "known: train, test" in said["split"][1]


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://stand-in.invalid"])
def test_a_hub_out_of_reach_names_the_embedded_alternative(endpoint: str, tmp_path: Path) -> None:
    cases = {"hub": {"dataset_name": "acme/small"}, "digits": {"dataset_name": "digits"}}
    said = run(WRONG % json.dumps(cases), endpoint, tmp_path)
    assert list(said) == ["hub"]  # the embedded set asks nobody
    kind, text = said["hub"]
    assert kind == "HubUnavailable"
    assert "'digits'" in text
    assert "acme/small" in text
    assert "\n" not in text


def test_a_hub_that_fails_is_out_of_reach(hub: Any, tmp_path: Path) -> None:
    hub.broken.append("/api/")
    said = run(WRONG % json.dumps({"hub": {"dataset_name": "acme/small"}}), hub.address, tmp_path)
    assert said["hub"][0] == "HubUnavailable"
