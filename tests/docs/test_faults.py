"""Every row of the fault table names tests that exist."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT

ROW = re.compile(r"^\| (\d+) \| [^|]+ \| ([^|]+) \| [^|]+ \|$", re.M)
CITED = re.compile(r"`([\w/]+\.py)?(?:::(\w+))?`")


def test_every_row_has_a_test_that_exists() -> None:
    page = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    rows = dict(ROW.findall(page[: page.index("## Inputs and mistakes")]))
    assert list(rows) == [str(number) for number in range(1, 26)]
    for number, cited in rows.items():
        path = ""
        for file, name in CITED.findall(cited):
            path = file or path
            if not path:
                continue
            source = (ROOT / "tests" / path).read_text(encoding="utf-8")
            assert not name or re.search(rf"def {name}\(", source), f"row {number}: {path}::{name}"
        assert path, f"row {number} names no test"
