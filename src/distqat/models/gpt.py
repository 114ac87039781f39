"""`distilgpt2` and `gptneo`: causal language models of known shapes, cut as every `hf` model is.

DistilGPT-2 (arXiv:1910.01108) is a GPT-2 of 6 blocks; GPT-Neo (Black et al., 2021) alternates blocks with
global attention and with attention to the last `window_size` tokens, at two published sizes. Every size can
be changed; `pretrained` takes shape and weights from a folder or the hub instead. Without `stages` or
`layers` the blocks are dealt out to a head, a body and a tail. Embeddings are tied as `causal_lm` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from distqat.errors import ModelError, UnknownName
from distqat.models.causal_lm import ModelPart

VOCABULARY = 50257  # of GPT-2's tokenizer, which GPT-Neo shares
GPTNEO_SHAPES: dict[str, dict[str, int]] = {
    "125m": {"num_layers": 12, "hidden_size": 768, "num_heads": 12},
    "1.3b": {"num_layers": 24, "hidden_size": 2048, "num_heads": 16},
}


@dataclass(frozen=True)
class KnownShape(ModelPart):
    """A part of a model whose sizes have defaults; None means the default, or what `pretrained` says."""

    vocab_size: int | None = None
    dropout: float | None = None
    default_stages: ClassVar[int | None] = 3
    sizes: ClassVar[tuple[str, ...]] = ()
    """Fields that belong to the shape, by the names that transformers gives them."""

    def keys(self) -> dict[str, Any] | None:
        """Keys for a configuration of transformers; None with `pretrained`. Raises ModelError for both."""
        given = {name: getattr(self, name) for name in (*self.sizes, "vocab_size")}
        given = {name: value for name, value in given.items() if value is not None}
        if self.pretrained is None:
            return self._shape(given)
        if given:
            fixed = ", ".join(sorted(given))
            raise ModelError(f"pretrained: {self.pretrained!r} settles the shape; leave out {fixed}")
        return None

    def _shape(self, given: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def _dropouts(self, *names: str) -> dict[str, float]:
        return {} if self.dropout is None else dict.fromkeys(names, self.dropout)


@dataclass(frozen=True)
class DistilGpt2(KnownShape):
    """Defaults: 6 blocks, width 768, 12 heads, 50257 tokens, 1024 positions; 81.9 million parameters."""

    n_layer: int | None = None
    n_embd: int | None = None
    n_head: int | None = None
    n_positions: int | None = None
    sizes: ClassVar[tuple[str, ...]] = ("n_layer", "n_embd", "n_head", "n_positions")

    def _shape(self, given: dict[str, Any]) -> dict[str, Any]:
        dropouts = self._dropouts("resid_pdrop", "embd_pdrop", "attn_pdrop")
        config = {"model_type": "gpt2", "n_layer": 6, "n_embd": 768, "n_head": 12}
        return _marked({**config, **given, **dropouts})


@dataclass(frozen=True)
class GptNeo(KnownShape):
    """Defaults: those of `shape`, 50257 tokens, 2048 positions, a window of 256 in every second block."""

    shape: str | None = None
    num_layers: int | None = None
    hidden_size: int | None = None
    num_heads: int | None = None
    max_position_embeddings: int | None = None
    window_size: int | None = None
    sizes: ClassVar[tuple[str, ...]] = (
        "shape", "num_layers", "hidden_size", "num_heads", "max_position_embeddings", "window_size"
    )  # fmt: skip

    def _shape(self, given: dict[str, Any]) -> dict[str, Any]:
        name = str(given.pop("shape", "125m")).lower()
        if name not in GPTNEO_SHAPES:
            raise UnknownName("shape of gptneo", name, GPTNEO_SHAPES)
        dropouts = self._dropouts("resid_dropout", "embed_dropout", "attention_dropout")
        config: dict[str, Any] = {"model_type": "gpt_neo", **GPTNEO_SHAPES[name], **given, **dropouts}
        pairs, odd = divmod(int(config["num_layers"]), 2)
        config["attention_types"] = [[["global", "local"], pairs]] + ([[["global"], 1]] if odd else [])
        return _marked(config)


def _marked(config: dict[str, Any]) -> dict[str, Any]:
    """The marks of begin and end are the last token, as in GPT-2, whatever the size of the vocabulary."""
    last = int(config.get("vocab_size", VOCABULARY)) - 1
    return {**config, "bos_token_id": last, "eos_token_id": last}
