"""The data sets that need no network, by name. What reads them is imported when one is opened."""

from __future__ import annotations

from distqat.data.embedded import EmbeddedSource, check_split, held_out
from distqat.data.options import DataOptions
from distqat.data.source import Source, register_dataset
from distqat.errors import DataError


@register_dataset("digits")
def _digits(options: DataOptions, seed: int) -> Source:
    from distqat.data.sources.digits import digits

    return held_out(options, digits(options.img_size, options.num_channels), seed=seed)


@register_dataset("python_docs")
def _python_docs(options: DataOptions, seed: int) -> Source:
    from distqat.data.text.open_tokenizer import open_tokenizer
    from distqat.data.text.packing import Packing
    from distqat.data.text.python_text import split_documents
    from distqat.tasks.options import parse_options
    from distqat.tasks.text_options import TextOptions

    check_split(options)
    end = parse_options(TextOptions, options.options, "llm").end_token  # every text is one document
    packing = Packing(
        open_tokenizer(options.tokenizer, end), options.sequence_length, TextOptions(end_token=end)
    )
    train, heldout = (list(packing({"text": text} for text in part)) for part in split_documents())
    if not train or not heldout:
        raise DataError(
            f"the texts of this Python make no sequence of {options.sequence_length} tokens to train on and "
            "to hold out; set a shorter data.sequence_length"
        )
    return EmbeddedSource(f"{options.dataset_name} {packing}", train, heldout, seed=seed)


@register_dataset("digits_graph")
def _digits_graph(options: DataOptions, seed: int) -> Source:
    from distqat.data.sources.digits import digits_table
    from distqat.data.sources.graph_sets import digits_graph, open_graph

    return open_graph(options, seed, lambda given: digits_graph(given, *digits_table()))


@register_dataset("karate")
def _karate(options: DataOptions, seed: int) -> Source:
    from distqat.data.sources.graph_sets import karate, open_graph

    return open_graph(options, seed, karate)


@register_dataset("cora")
def _cora(options: DataOptions, seed: int) -> Source:
    from distqat.data.sources.graph_sets import cora, open_graph

    return open_graph(options, seed, cora)


@register_dataset("ogbn-arxiv")
def _ogbn_arxiv(options: DataOptions, seed: int) -> Source:
    from distqat.data.sources.graph_sets import ogbn_arxiv, open_graph

    return open_graph(options, seed, ogbn_arxiv)


@register_dataset("speech_prompts")
def _speech_prompts(options: DataOptions, seed: int) -> Source:
    from distqat.data.sources.prompts import speech_prompts

    return speech_prompts(options, seed=seed)
