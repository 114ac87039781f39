"""All codecs by the name that stands in the configuration and on the wire."""

from __future__ import annotations

from distqat.codec.blocks import Int4Codec, Int8Codec
from distqat.codec.codec_interface import Codec
from distqat.codec.plain import Float16Codec, Float32Codec
from distqat.errors import UnknownName

CODECS: dict[str, Codec] = {
    codec.name: codec for codec in (Float32Codec(), Float16Codec(), Int8Codec(), Int4Codec())
}


def get_codec(name: str) -> Codec:
    """The codec of that name; UnknownName gives the nearest."""
    if name not in CODECS:
        raise UnknownName("codec", name, CODECS)
    return CODECS[name]
