"""One registry; the configuration knows the same names."""

from __future__ import annotations

import typing

import pytest

from distqat.codec import CODECS, get_codec
from distqat.diloco.options import CodecName
from distqat.errors import UnknownName


def test_names_are_those_of_the_configuration() -> None:
    assert set(CODECS) == set(typing.get_args(CodecName))
    assert all(get_codec(name).name == name for name in CODECS)


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown codec 'int5'; did you mean 'int"):
        get_codec("int5")
