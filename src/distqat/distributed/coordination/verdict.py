"""The sentence about a model that is there, but that nobody could judge."""

from __future__ import annotations


def not_judged(model: str, why: str) -> str:
    """For the terminal and the log; "" where there is no `why`."""
    if not why:
        return ""
    return (
        f"the model is saved as {model}, but it could not be judged: {why}; "
        f"when that is put right: distqat evaluate {model}"
    )
