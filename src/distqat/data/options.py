"""The `data` section of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distqat.options import Options

TaskType = Literal["cv", "image_gen", "llm", "nlp", "node_pred", "rl", "speech"]
Precision = Literal["fp16-mixed", "bf16", "fp32"]


class DataOptions(Options):
    """What is trained on. `dataset_name` is an embedded set or a name on the Hugging Face hub."""

    dataset_name: Annotated[str, Field(min_length=1)] = "digits"
    """`digits`, `python_docs` (text; both embedded, no network) or a hub name such as `uoft-cs/cifar10`."""
    dataset_config: str | None = None
    """Configuration of a hub data set that has several."""
    dataset_split: Annotated[str, Field(min_length=1)] = "train"
    """Split to train on; the embedded sets have `train` only."""
    task_type: TaskType = "cv"
    num_workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Threads of the data server that decode and collate; 0 does it inline."""
    precision: Precision = "fp32"
    """Precision of forward and backward passes."""
    num_channels: Annotated[int, Field(ge=1, le=64)] = 3
    """Channels of image batches."""
    img_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Height and width of image batches, in pixels."""
    sequence_length: Annotated[int, Field(ge=1, le=1_048_576)] = 128
    """Tokens of a training sequence of language models."""
    tokenizer: Annotated[str, Field(min_length=1)] = "bytes"
    """`bytes` (257 tokens), a folder with a `tokenizer.json`, or a hub name: `distilbert/distilgpt2`."""
    shuffle_buffer: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """Samples (sequences, where text is packed) of a hub stream that are mixed at a time; 1: file order."""
