"""The site: it builds without a warning and loads nothing from elsewhere; its diagrams are the script's."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.docs.pages import ROOT

DOCS = ROOT / "docs"
LOADED = re.compile(
    r"""(?:<(?:script|img|iframe|source)[^>]*\bsrc|<link(?![^>]*canonical)[^>]*\bhref)=["'](?:https?:)?//"""
)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_it_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """As `make docs` does, which CI runs; so this one is slow only."""
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(tmp_path / "trees"),
         "-b", "html", str(DOCS), str(tmp_path / "site")],
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    for page in site.rglob("*.html"):
        assert not LOADED.search(page.read_text(encoding="utf-8")), page
    for style in site.rglob("*.css"):
        assert not re.search(
            r"url\([\"']?https?:|@import [\"']?https?:", style.read_text(encoding="utf-8")
        ), style
    page = (site / "api/distqat.topology.html").read_text(encoding="utf-8")
    assert "distqat.topology.routing.Router(" in re.sub(r"<[^>]+>", "", page)


def test_the_readme_is_read_at_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_page_has_a_place_in_the_contents() -> None:
    contents = (DOCS / "index.md").read_text(encoding="utf-8").splitlines()
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or page.stem in contents, page


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS / "images"))
    return importlib.import_module("figures")


def test_the_diagrams_are_those_of_the_script(figures: ModuleType) -> None:
    for name, draw in figures.FIGURES.items():
        written = (DOCS / "images" / name).read_text(encoding="utf-8")
        assert written == draw().svg(), "run python docs/images/figures.py"
    assert {path.name for path in (DOCS / "images").glob("*.svg")} == set(figures.FIGURES)


def test_docstrings_become_paragraphs_lists_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "_site"))
    as_rst = importlib.import_module("docstrings").as_rst
    text = "Takes `x*` and *args, as\nlong as_ it can:\n\n    a = b_\n\n    c\n\n- one\n  more\n- `two`s"
    text += "\n\n.. a\n===\nA. b ` c\n:d: e"
    assert as_rst(text) == [
        "Takes ``x*`` and \\*args, as", "long as\\_ it can:", "",
        "::", "", "    a = b_", "", "    c", "",
        "- one", "  more", "", "- ``two``\\ s", "",
        "\\.. a", "\\===", "\\A. b \\` c", "\\:d: e", "",
    ]  # fmt: skip


def test_the_reference_has_every_module_and_imports_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "_site"))
    importlib.import_module("api_pages").write(tmp_path)
    pages = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*.rst"))
    for path in (ROOT / "src" / "distqat").rglob("*.py"):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        assert path.stem == "__main__" or f".. py:module:: {name}\n" in pages, name
