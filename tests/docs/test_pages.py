"""What the pages say of configuration, files, calls and log lines is what the code does."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from tests.docs import configuration_page, protocol_page
from tests.docs.log_lines import LOG_LINES
from tests.docs.pages import ROOT, Block, blocks, pages

from distqat.config import keys_of, load_config
from distqat.config.fields import config_fields
from distqat.config.load import shipped_configs
from distqat.models import mlp, resnet
from distqat.models.registry import CONTEXT_KEYS
from distqat.protocol.calls import CALLS

DISTRIBUTED = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted((ROOT / "src/distqat/distributed").rglob("*.py"))
)


@pytest.mark.parametrize(
    "block", [block for block in blocks("yaml") if "plugins:" not in block.text], ids=str
)
def test_every_yaml_block_loads(block: Block, tmp_path: Path) -> None:
    """One that names plugins is loaded beside them in test_extending.py; so is the model of the recipe."""
    path = tmp_path / "block.yaml"
    path.write_text(re.sub(r"mymodel\.(\w+)", r"mlp.\1", block.text))
    load_config(path)


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_loads_and_is_documented(name: str) -> None:
    load_config(f"configs/{name}.yaml")
    assert f"`configs/{name}.yaml`" in (ROOT / "docs/models.md").read_text()


def test_the_configuration_page_is_that_of_the_schema() -> None:
    written = configuration_page.PAGE.read_text(encoding="utf-8")
    assert written == configuration_page.page(), f"run {configuration_page.COMMAND}"


def test_the_protocol_page_is_that_of_the_calls_and_tables() -> None:
    written = protocol_page.PAGE.read_text(encoding="utf-8")
    assert written == protocol_page.page(), f"run {protocol_page.COMMAND}"


def test_every_key_has_a_meaning() -> None:
    text = configuration_page.page()
    assert not re.findall(r"^\| `[^|]*\|[^|]*\|[^|]*\| +\|$", text, re.MULTILINE)
    for field in config_fields():
        assert f"| `{field.path.rpartition('.')[2]}` |" in text


def test_the_keys_of_resnets_and_perceptrons_are_those_of_their_constructors() -> None:
    taken = {
        key: parameter.default
        for model in (resnet, mlp)
        for key, parameter in inspect.signature(model.build).parameters.items()
        if key not in ("model", "stage") and key not in CONTEXT_KEYS
    }
    assert taken.keys() == configuration_page.CHAIN_KEYS.keys()
    for key, default in taken.items():
        assert default is None or configuration_page.CHAIN_KEYS[key][0] == f"`{default}`"


def test_the_configuration_page_says_who_decides_every_key() -> None:
    text = configuration_page.page()
    for authority in ("client", "group", "own"):
        assert text.count(f" | {authority} | ") == len(keys_of(authority))
        assert f"- **{authority}**: " in text


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_that_the_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    package = ROOT / "src" / "distqat"
    places = (ROOT, package, package / "distributed", package / "launch")
    for name in set(re.findall(r"`([\w/]+(?:\.py|/))`", text)):
        assert any((place / name).exists() for place in places), name


def test_every_call_in_the_diagrams_is_answered() -> None:
    drawn = "".join((ROOT / f"docs/images/{name}.svg").read_text() for name in ("step", "round"))
    calls = set(re.findall(r'class="call"[^>]*>(\w+)', drawn))
    assert {"open", "train", "labels", "prepare", "commit", "slot", "ready", "contribute", "vote"} <= calls
    assert calls <= CALLS.keys()


def test_every_documented_log_line_is_written_so() -> None:
    shown = [
        line
        for block in blocks("text")
        for line in block.text.splitlines()
        if block.page == "docs/operating.md"
    ]
    assert sorted(shown) == sorted(line.shown for line in LOG_LINES)
    for line in LOG_LINES:
        assert line.code in DISTRIBUTED, line.shown
        assert line.arguments is None or line.code % line.arguments == line.shown


def test_every_page_that_the_sources_cite_exists() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        for cited in re.findall(r"\b(?:docs/)?[\w/-]+\.md\b", path.read_text(encoding="utf-8")):
            assert (ROOT / cited).exists() or cited == "report.md", (path, cited)
