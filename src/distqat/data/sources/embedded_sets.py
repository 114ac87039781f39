"""The data sets that need no network, by name. What reads them is imported when one is opened."""

from __future__ import annotations

from distqat.data.embedded import EmbeddedSource, check_split, held_out
from distqat.data.options import DataOptions
from distqat.data.source import Source, register_dataset


@register_dataset("digits")
def _digits(options: DataOptions, seed: int) -> Source:
    from distqat.data.sources.digits import digits

    return held_out(options, digits(options.img_size, options.num_channels), seed=seed)


@register_dataset("python_docs")
def _python_docs(options: DataOptions, seed: int) -> Source:
    from distqat.data.sources.python_text import packed_documents

    check_split(options)
    name, train, heldout = packed_documents(options)
    return EmbeddedSource(name, train, heldout, seed=seed)


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
