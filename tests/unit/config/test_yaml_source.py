"""YAML with lines."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distqat.config.yaml_source import MAX_DEPTH, parse, parse_value
from distqat.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4e-4", 4e-4),
        ("1.5E+3", 1500.0),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("2024-01-01", "2024-01-01"),
        ("'5'", "5"),
        ("[1, a]", [1, "a"]),
        ("/ip6/::1/tcp/1", "/ip6/::1/tcp/1"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert parse(f"key: {text}", "x").values == {"key": value}


def test_every_value_knows_its_line() -> None:
    source = parse("a: 1\n\nb:\n  c: 2\n  d:\n  - x\n  - {e: 3,\n     f: 4}\n", "x.yaml")
    assert source.line(("a",)) == 1
    assert source.line(("b", "c")) == 4
    assert source.line(("b", "d", 1)) == 7
    assert source.place(("b", "d", 1, "f")) == "x.yaml:8"


def test_a_path_that_is_not_there_stands_where_its_section_does() -> None:
    source = parse("a: 1\nb:\n  c: 2\n", "x.yaml")
    assert source.place(("b", "missing", "deeper")) == "x.yaml:2"
    assert parse("", "x.yaml").place(("a",)) == "x.yaml"


def test_an_empty_file_has_no_values() -> None:
    assert parse("# nothing\n", "x").values == {}


def test_merged_mappings_may_be_overridden() -> None:
    source = parse("base: &base {a: 1, b: 2}\none: &one {<<: *base, b: 3}\ntwo: *one\nthree: *one\n", "x")
    assert source.values["one"] == source.values["three"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "x:3: a: given twice, first on line 1"),
        ("s:\n  - {k: 1, k: 2}\n", "x:2: s.0.k: given twice"),
        ("- 1\n", "x:1: expected `key: value` lines"),
        ("a: [1\nb: 2\n", "x:2: "),
        (
            "a: !!python/object:os.system {}\n",
            "x:1: tag 'tag:yaml.org,2002:python/object:os",
        ),
        ("a: !!timestamp 2024-01-01\n", "x:1: tag "),
        ("a: !!int many\n", "x:1: 'many' is not a valid int"),
        ("a: !!bool many\n", "x:1: 'many' is not a valid bool"),
        (f"a: {'9' * 5000}\n", "x:1: '9999"),
        ("a: 1\n? [b, c]\n: 2\n", "x:2: a key must be a plain word"),
        ("a: &a {b: *a}\n", f"x:1: nested more than {MAX_DEPTH} deep"),
        ("a: *nowhere\n", "x:1: found undefined alias"),
        ("a: 1\n---\nb: 2\n", "x:2: but found another document"),
        ("a: \x00\n", "x: "),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "x")
    assert str(caught.value).startswith(said)


def test_a_value_that_is_no_yaml_says_so() -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        parse_value("[1")


_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("abc 1e-:.#", max_size=8)
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
)


@given(st.dictionaries(st.text("abcde", min_size=1), _VALUES, max_size=4))
def test_what_yaml_wrote_is_read_back(values: dict[str, Any]) -> None:
    assert parse(yaml.safe_dump(values), "x").values == values


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse(text, "x").values, dict)
