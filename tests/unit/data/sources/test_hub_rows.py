"""Rows of a streaming data set: where each comes from, and what a network that fails becomes."""

from __future__ import annotations

from typing import Any

import pytest

from distqat.data.rows import origin_of
from distqat.data.sources.hub import BARE_NAMES, nearest
from distqat.data.sources.hub_rows import HubRows
from distqat.errors import HubUnavailable


def rows() -> HubRows:
    import datasets

    features = datasets.Features({"label": datasets.ClassLabel(names=["ant", "bee"])})
    whole = datasets.Dataset.from_dict({"label": [i % 2 for i in range(6)]}, features=features)
    return HubRows(
        whole.to_iterable_dataset(num_shards=2), "acme/set, split train", lambda: HubUnavailable("away")
    )


def origins(found: HubRows) -> list[str]:
    return [origin_of(row) for row in found]


def test_rows_say_where_they_come_from() -> None:
    found = rows()
    assert (found.columns, found.classes, found.files) == (("label",), ("ant", "bee"), 2)
    assert [row["label"] for row in found] == [0, 1] * 3
    assert origins(found)[-1] == "acme/set, split train, row 5 (from 0)"
    assert origins(found.skip(4)) == [f"acme/set, split train, row {n} (from 0)" for n in (4, 5)]
    assert len(origins(found.take(2))) == 2
    assert origins(found.of_file(1))[0] == "acme/set, split train, file 1, row 0 (from 0)"


def test_a_network_that_fails_in_the_middle() -> None:
    class Failing:
        def __iter__(self) -> Any:
            yield {"label": 0}
            raise ConnectionResetError("reset by peer")

    found = iter(HubRows(Failing(), "acme/set", lambda: HubUnavailable("away")))
    assert next(found) == {"label": 0}
    with pytest.raises(HubUnavailable, match="away"):
        next(found)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "did you mean 'digits'? "),
        ("pythondocs", "did you mean 'python_docs'? "),
        ("wikitxt", "did you mean 'wikitext'? "),
        ("acme/entirely-else", ""),
        ("data", "did you mean the path './data'? "),
    ],
)
def test_names_that_may_be_a_slip(
    name: str, hint: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distqat.data.sources import embedded_sets

    assert embedded_sets is not None  # registers the names
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert nearest(name) == hint
    assert "wikitext" in BARE_NAMES
