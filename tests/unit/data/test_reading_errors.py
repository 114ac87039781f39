"""Whatever a task or a data set raises is one sentence that names the sample, and the same one each time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch

from distqat.data.open_source import open_source
from distqat.data.options import DataOptions
from distqat.data.reading_errors import batch_of, heldout_of, read_from, restore, told
from distqat.data.rows import Row
from distqat.data.serving.prefetch import Prefetch
from distqat.data.source import DATASETS, Item
from distqat.errors import DataError, HubUnavailable, MissingExtra, TaskError
from distqat.tasks import Batch, Sample, Task, TaskSettings, get_task

CV = get_task("cv", TaskSettings(num_classes=3, num_channels=1, img_size=2))
GOOD = {"image": [[0, 1], [2, 3]], "label": 1}
RAISED: list[BaseException] = [
    KeyError("no such column"),
    ZeroDivisionError("division by zero"),
    StopIteration(),
    SystemExit(3),
    RecursionError("too deep"),
    OSError(28, "No space left"),
    TaskError("it does not fit"),
]


class Odd(Task):
    """A task that raises for a sample that holds an exception."""

    name, metric = "odd", "accuracy"

    def __init__(self, gives: Any = None) -> None:
        self.gives = gives

    def collate(self, samples: Sequence[Sample]) -> Any:
        for sample in samples:
            if isinstance(sample.get("raise"), BaseException):
                raise sample["raise"]
        return self.gives or Batch({"x": torch.zeros(len(samples), 1)}, {}, len(samples))


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_the_sample_at_fault_is_named(error: BaseException) -> None:
    samples = [
        Row({}, "a.jsonl, line 1"),
        Row({"raise": error}, "a.jsonl, line 2"),
        Row({}, "a.jsonl, line 3"),
    ]
    with pytest.raises(DataError, match=r"^a\.jsonl, line 2: ") as raised:
        batch_of(Odd(), samples)
    said = str(raised.value)
    assert (str(error) in said) or type(error).__name__ in said
    with pytest.raises(DataError, match=r"^sample 9 of epoch 2 .in the order of training, from 0.: "):
        batch_of(Odd(), [dict(samples[1])], [(2, 9)])
    with pytest.raises(DataError, match=r"^sample 1 of a batch "):
        batch_of(Odd(), [dict(sample) for sample in samples])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"label": None}, "the label is null"),
        ({"label": 2.7}, r"label 2\.7 is not a class index"),
        ({"label": float("inf")}, "label inf is not a class index"),
        ({"label": 7}, r"label 7 is outside the classes \[0, 3\)"),
        ({"image": [[1, 2], [3]]}, "rows of different lengths"),
        ({"image": {"bytes": b"\xff\xd8\xff\xe0 no more"}}, "no image|cannot be decoded"),
        ({"image": [[0.0, 200.0], [1.0, 2.0]]}, "floats lie in 0 to 1"),
        ({"image": [[0.0, float("nan")], [1.0, 1.0]]}, "NaN"),
    ],
)
def test_rows_that_are_no_labelled_picture(wrong: dict[str, Any], said: str) -> None:
    samples = [GOOD, Row({**GOOD, **wrong}, "train.parquet, row 350 (from 0)"), GOOD]
    with pytest.raises(DataError, match=rf"^train\.parquet, row 350 \(from 0\): .*({said})"):
        batch_of(CV, samples, [(0, 0), (0, 1), (0, 2)])


def test_samples_that_fail_only_together() -> None:
    class Ragged(Odd):
        def collate(self, samples: Sequence[Sample]) -> Batch:
            x = torch.stack([sample["x"] for sample in samples])
            return Batch({"x": x}, {}, len(samples))

    samples = [Row({"x": torch.zeros(n)}, f"row {n}") for n in (1, 2)]
    with pytest.raises(
        DataError, match=r"^the samples from row 1 to row 2 make no batch together: RuntimeError"
    ):
        batch_of(Ragged(), samples)


@pytest.mark.parametrize(
    "gives",
    [
        [1],
        Batch([1], {}, 1),  # type: ignore[arg-type]
        Batch({"x": [1.0]}, {}, 1),  # type: ignore[dict-item]
        Batch({1: torch.zeros(1)}, {}, 1),  # type: ignore[dict-item]
        Batch({"x": torch.zeros(1)}, {}, torch.tensor(1)),  # type: ignore[arg-type]
        Batch({"x": torch.zeros(0)}, {}, 0),
    ],
)
def test_what_is_no_batch(gives: Any) -> None:
    with pytest.raises(DataError, match="TypeError: "):
        batch_of(Odd(gives), [{}])


def test_a_missing_package_stays_what_it_is() -> None:
    with pytest.raises(MissingExtra):
        batch_of(Odd(), [{"raise": MissingExtra("soundfile", "speech")}])


def test_an_address_in_memory_is_no_part_of_a_sentence() -> None:
    assert (
        told(ValueError("<_io.BytesIO object at 0x7f350427e160> is odd"))
        == "ValueError: <_io.BytesIO object> is odd"
    )


class Broken:
    """A source of a plugin whose every method may raise."""

    order = "broken"

    def __init__(self, error: BaseException | None = None, gives: Any = None) -> None:
        self.error, self.gives = error, gives

    def take(self, count: int) -> Any:
        if self.error is not None:
            raise self.error
        return self.gives

    def state(self) -> dict[str, int]:
        return {"epoch": 1, "index": 7}

    def restore(self, state: Mapping[str, Any]) -> None:
        raise KeyError("file")

    def heldout(self) -> Iterable[Sample]:
        yield {}
        raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    "error", [e for e in RAISED if not isinstance(e, TaskError)], ids=lambda e: type(e).__name__
)
async def test_a_source_that_raises_is_told_and_nothing_hangs(error: BaseException) -> None:
    with pytest.raises(DataError, match=r"^sample 7 of epoch 1 of broken cannot be read: "):
        read_from(Broken(error), 4)
    ahead = Prefetch(Broken(error), CV)
    for _ in range(3):
        with pytest.raises(DataError, match="cannot be read"):
            await ahead.next(4)
    ahead.close()


@pytest.mark.parametrize("gives", [[], None, [GOOD], 3])
def test_a_source_that_gives_no_items(gives: Any) -> None:
    with pytest.raises(DataError, match=r"take\(4\) gave .*, not a list of 1 to 4 items"):
        read_from(Broken(gives=gives), 4)


def test_the_other_methods_of_a_source() -> None:
    with pytest.raises(DataError, match=r"held-out sample 1 \(from 0\) cannot be read: ZeroDivisionError"):
        list(heldout_of(Broken()))
    with pytest.raises(DataError, match="position cannot be taken up again: KeyError"):
        restore(Broken(), {})
    with pytest.raises(HubUnavailable):  # may be tried again
        read_from(Broken(HubUnavailable("the hub is away")), 4)


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("workers", [0, 2])
async def test_a_collation_that_raises_is_told_each_time(error: BaseException, workers: int) -> None:
    class Items(Broken):
        index = 0

        def take(self, count: int) -> list[Item]:
            self.index += 1
            row = Row({"raise": error if self.index == 3 else None}, f"row {self.index}")
            return [Item(1, 7 + self.index, row)]

    ahead = Prefetch(Items(), Odd(), workers=workers)
    for _ in range(3):
        with pytest.raises(DataError, match=r"^row 3: "):
            await ahead.next(4)
    ahead.close()


def test_a_data_set_that_cannot_be_opened_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(options: DataOptions, seed: int) -> Any:
        raise KeyError("shards")

    monkeypatch.setitem(DATASETS, "broken", broken)
    with pytest.raises(
        DataError, match=r"the data set 'broken' cannot be opened: KeyError: 'shards' \(.*py:\d+\)"
    ):
        open_source(DataOptions(dataset_name="broken"), seed=0)
