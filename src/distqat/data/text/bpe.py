"""A byte-level BPE tokenizer that is trained here, on the embedded text. Sennrich et al., arXiv:1508.07909.

    data.tokenizer: bpe:2000        2000 tokens: 256 bytes, the end of a document, 1743 merges

Training takes about a second and gives the same merges every time on one text, so nothing is kept: whoever
needs it trains it. The embedded text is that of the installed Python, so another version may merge otherwise;
a digest in the name of the tokenizer tells such orders of samples apart.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any

from distqat.data.text.python_text import split_documents
from distqat.data.text.tokenizer import EngineTokenizer
from distqat.errors import DataError

PREFIX = "bpe:"
END = "<|endoftext|>"
LEAST = 257  # bytes, and the end of a document
MOST = 65_536


def size_of(name: str) -> int | None:
    """Tokens of `bpe:N`; None for another kind of name. Raises DataError for a number that cannot be."""
    if not name.startswith(PREFIX):
        return None
    number = name.removeprefix(PREFIX)
    if not re.fullmatch(r"\d{1,6}", number) or not LEAST <= int(number) <= MOST:
        raise DataError(
            f"data.tokenizer: {name!r} needs a number of tokens from {LEAST} to {MOST}, as in 'bpe:2000'"
        )
    return int(number)


@lru_cache(maxsize=4)
def trained(size: int) -> EngineTokenizer:
    """Of exactly `size` tokens, trained on the embedded text without what is held out of it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    engine: Any = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    texts, _ = split_documents()
    engine.train_from_iterator(texts, trainer)
    found = int(engine.get_vocab_size())
    if found != size:
        raise DataError(f"the embedded text has only {found} tokens to learn, not {size}; use bpe:{found}")
    digest = hashlib.sha256(engine.to_str().encode()).hexdigest()[:12]
    return EngineTokenizer(f"{PREFIX}{size}@{digest}", engine)
