"""How tensors travel: float32, float16, and 8 or 4 bits in blocks of 64."""

from distqat.codec.codec_interface import Codec
from distqat.codec.contribution import decode_tensors, encode_tensors, with_error_feedback
from distqat.codec.registry import CODECS, get_codec

__all__ = ["CODECS", "Codec", "decode_tensors", "encode_tensors", "get_codec", "with_error_feedback"]
