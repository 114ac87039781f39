"""What an exported file says about itself: enough to feed it and to read its answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distqat.errors import ExportError
from distqat.tasks import Task, TaskSettings, get_task

if TYPE_CHECKING:
    import onnx

KEY = "distqat"


@dataclass(frozen=True)
class FileDescription:
    """The task with its settings, by which inputs are prepared and outputs read."""

    task_type: str
    settings: TaskSettings
    labels: tuple[str, ...] = ()
    """Names of the classes, where the task has classes."""
    tokenizer: str = ""
    source: str = ""

    def task(self) -> Task:
        """The task that prepares inputs as in training. Raises TaskError, UnknownName."""
        return get_task(self.task_type, self.settings)

    def to_json(self) -> str:
        """One line."""
        return json.dumps({**dataclasses.asdict(self), "preprocessing": self.preprocessing()}, sort_keys=True)

    def preprocessing(self) -> str:
        """For people who feed the file from another language."""
        settings = self.settings
        if self.task_type == "cv":
            how = settings.options.get("normalize", "pixels / 0.5 - 1 of values in [0, 1]")
            size, channels = settings.img_size, settings.num_channels
            return f"float32 [batch, {channels}, {size}, {size}]; shorter side scaled, centre cropped; {how}"
        if self.task_type in ("llm", "nlp"):
            return f"int64 token ids [batch, {settings.sequence_length}] of the tokenizer {self.tokenizer!r}"
        return f"as the task {self.task_type} makes its batches"

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], where: str) -> FileDescription:
        """What `describe` wrote. Raises ExportError for a file that was not exported here."""
        if KEY not in metadata:
            raise ExportError(f"{where} was not made by distqat export: it does not say what it takes")
        fields: dict[str, Any] = json.loads(metadata[KEY])
        known = {field.name for field in dataclasses.fields(TaskSettings)}
        settings = {name: value for name, value in fields["settings"].items() if name in known}
        return cls(
            str(fields["task_type"]),
            TaskSettings(**settings),
            tuple(fields["labels"]),
            str(fields["tokenizer"]),
            str(fields["source"]),
        )


def describe(model: onnx.ModelProto, description: FileDescription) -> None:
    """Write the description into the file's metadata, for programs as JSON under one key."""
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, description.to_json()


def refuse_task(task: Task) -> None:
    """ExportError for a task whose models no fixed graph holds, or nothing can check."""
    if task.plays:
        why = "it has no held-out samples that a file could be checked with"
    elif task.phased:
        why = "its batches take several phases, and a file holds one graph"
    else:
        return
    raise ExportError(
        f"models of the task {task.name} are not exported: {why}; "
        "distqat checkpoint assemble writes the weights as one safetensors file"
    )
