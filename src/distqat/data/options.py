"""The `data` section of the configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from distqat.errors import UnknownName
from distqat.options import Options
from distqat.tasks import known_task_types

Precision = Literal["fp16-mixed", "bf16", "fp32"]


class DataOptions(Options):
    """What is trained on: an embedded data set, one of a plugin, local files, or the Hugging Face hub's."""

    dataset_name: Annotated[str, Field(min_length=1)] = "digits"
    """`digits`, `python_docs`, `speech_prompts`, `digits_graph`, `karate` (embedded, no network), a hub name
    such as `uoft-cs/cifar10`, or `./path`: parquet, JSON or text files, or images in a folder per class."""
    dataset_config: str | None = None
    """Configuration of a hub data set that has several."""
    dataset_split: Annotated[str, Field(min_length=1)] = "train"
    """Split to train on; the embedded sets have `train` only."""
    task_type: str = "cv"
    """`cv`, `image_gen`, `llm` (or `nlp`), `node_pred`, `rl`, `speech`, or a plugin's."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keys that only the task and its data sets know."""
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
    """`bytes` (257 tokens), `bpe:2000` (2,000, trained here on the embedded text), a folder with a
    `tokenizer.json`, or a hub name: `distilbert/distilgpt2`."""
    shuffle_buffer: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """Samples (sequences, where text is packed) of a hub stream that are mixed at a time; 1: file order."""

    @field_validator("task_type")
    @classmethod
    def _known_task(cls, name: str) -> str:
        if name not in known_task_types():
            raise ValueError(str(UnknownName("task type", name, known_task_types())))
        return name
