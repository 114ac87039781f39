"""Tasks by name. A task turns samples into batches and outputs into a loss and a metric.

Importing this package does not import torch; building a task does.
"""

from __future__ import annotations

from distqat.tasks.base import (
    Batch,
    Experience,
    Phase,
    Player,
    Sample,
    Task,
    TaskSettings,
)
from distqat.tasks.registry import (
    TASK_ALIASES,
    TASK_TYPES,
    TASKS,
    get_task,
    known_task_types,
    register_task,
)

__all__ = [
    "TASKS",
    "TASK_ALIASES",
    "TASK_TYPES",
    "Batch",
    "Experience",
    "Phase",
    "Player",
    "Sample",
    "Task",
    "TaskSettings",
    "get_task",
    "known_task_types",
    "register_task",
]


@register_task("cv")
def _cv(settings: TaskSettings) -> Task:
    from distqat.tasks.cv import ImageClassification
    from distqat.tasks.image_augmentation import ImageOptions
    from distqat.tasks.options import parse_options

    return ImageClassification(
        num_classes=settings.num_classes,
        num_channels=settings.num_channels,
        img_size=settings.img_size,
        seed=settings.seed,
        options=parse_options(ImageOptions, settings.options, "cv"),
    )


@register_task("image_gen")
def _image_gen(settings: TaskSettings) -> Task:
    from distqat.tasks.image_gen import ImageGeneration

    return ImageGeneration(
        num_channels=settings.num_channels,
        img_size=settings.img_size,
        latent=settings.latent,
        seed=settings.seed,
        options=settings.options,
    )


@register_task("llm")
def _llm(settings: TaskSettings) -> Task:
    from distqat.tasks.llm import LanguageModelling
    from distqat.tasks.options import parse_options
    from distqat.tasks.text_options import TextOptions

    parse_options(TextOptions, settings.options, "llm")  # for the data set; a wrong key is told at once
    return LanguageModelling(vocab_size=settings.vocab_size, sequence_length=settings.sequence_length)


@register_task("node_pred")
def _node_pred(settings: TaskSettings) -> Task:
    from distqat.tasks.node_pred import GraphOptions, NodeClassification
    from distqat.tasks.options import parse_options

    parse_options(
        GraphOptions, settings.options, "node_pred"
    )  # its data sets read them; a typo ends every role
    return NodeClassification(num_classes=settings.num_classes)


@register_task("speech")
def _speech(settings: TaskSettings) -> Task:
    from distqat.tasks.options import parse_options
    from distqat.tasks.speech import SpeechOptions, SpeechRecognition

    options = parse_options(SpeechOptions, settings.options, "speech")
    return SpeechRecognition(options, vocab_size=settings.vocab_size)


@register_task("rl")
def _rl(settings: TaskSettings) -> Task:
    from distqat.tasks.options import parse_options
    from distqat.tasks.rl import PPOOptions, ProximalPolicy

    options = parse_options(PPOOptions, settings.options, "rl")
    return ProximalPolicy(settings.dataset_name, options, seed=settings.seed)
