"""Docstrings of this package, which are plain text, as reStructuredText."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_ITEM = re.compile(r"- |\d+\. ")
_SPECIAL = re.compile(r"([*|_\\<>\[\]`])")
_MARKUP = re.compile(r"^(?=[^\w\s`\\\"'(]|\w[.)] |\(\w+\) )", re.MULTILINE)
"""Where a line would begin something else than text: a directive, a rule, a field, an enumeration."""


def first_sentence(tree: ast.Module) -> str:
    """What a module says of itself first."""
    text = (ast.get_docstring(tree) or "").partition("\n\n")[0]
    return re.split(r"(?<=[.:])\s", text + " ")[0].replace("\n", " ")


def as_rst(text: str | None) -> list[str]:
    """Its lines; an indented block becomes a literal one."""
    result: list[str] = []
    for kind, block in _blocks((text or "").splitlines()):
        if kind == "literal":
            margin = min(len(line) - len(line.lstrip()) for line in block if line)
            result += ["::", "", *(f"    {line[margin:]}".rstrip() for line in block), ""]
        elif kind == "item":
            marker = block[0][: block[0].index(" ") + 1]
            first, *rest = inline("\n".join(block).removeprefix(marker)).split("\n")
            result += [marker + first, *(" " * len(marker) + line for line in rest), ""]
        else:
            result += [*inline("\n".join(block)).split("\n"), ""]
    return result


def inline(text: str) -> str:
    """A paragraph: code in backticks, of which reStructuredText wants two, and all else as it stands."""
    parts, end = [], 0
    for found in _CODE.finditer(text):
        before, after = text[end : found.start()], text[found.end() : found.end() + 1]
        parts += [_SPECIAL.sub(r"\\\1", before), "\\ " if before[-1:].strip() else ""]
        parts += [f"``{' '.join(found[2].split())}``", "\\ " if after.strip() else ""]
        end = found.end()
    return _MARKUP.sub(r"\\", "".join([*parts, _SPECIAL.sub(r"\\\1", text[end:])]))


def _blocks(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Paragraphs ("text"), items of lists and indented blocks ("literal")."""
    kind, block = "text", list[str]()
    for line in [*lines, ""]:
        new = _kind(line, kind)
        if new == "blank" and kind == "literal":
            block.append("")
            continue
        if block and (new != kind or _ITEM.match(line)):
            yield kind, _without_end(block)
            block = []
        kind = "text" if new == "blank" else new
        if new != "blank":
            block.append(line.rstrip() if kind == "literal" else line.strip())
    if block and any(block):
        yield kind, _without_end(block)


def _kind(line: str, before: str) -> str:
    if not line.strip():
        return "blank"
    if _ITEM.match(line):
        return "item"
    if line[0].isspace():
        return before if before == "item" else "literal"
    return "text"


def _without_end(block: list[str]) -> list[str]:
    while not block[-1]:
        block = block[:-1]
    return block
