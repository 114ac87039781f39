"""The task types that a configuration may name."""

from __future__ import annotations

TASK_TYPES: tuple[str, ...] = ("cv", "image_gen", "llm", "nlp", "node_pred", "rl", "speech")
"""Every documented `task_type`; a configuration with any of them loads."""

TASK_ALIASES: dict[str, str] = {"nlp": "llm"}
"""Two documented names of one task."""
