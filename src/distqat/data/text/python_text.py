"""Text that comes with Python: its language reference, and the docstrings of the standard library."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from distqat.data.order import permutation

SPLIT_SEED = 1991  # fixed: the held-out documents must not depend on the run's seed
HELDOUT_SHARE = 0.05
MODULES = (
    "argparse", "ast", "asyncio/tasks", "bisect", "calendar", "collections/__init__", "configparser",
    "contextlib", "csv", "decimal", "difflib", "doctest", "email/message", "enum", "fractions", "functools",
    "heapq", "html/parser", "http/client", "inspect", "ipaddress", "json/__init__", "logging/__init__",
    "mailbox", "optparse", "os", "pathlib", "pdb", "pickle", "pickletools", "random", "shutil", "smtplib",
    "socket", "ssl", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading",
    "traceback", "turtle", "typing", "unittest/case", "unittest/mock", "urllib/request", "uuid", "zipfile",
)  # fmt: skip


def documents() -> list[str]:
    """Topics of the language reference (pydoc_data, PSF licence), then docstrings module by module."""
    found: list[str] = []
    with suppress(ImportError):  # some distributions ship it in a package of its own
        from pydoc_data.topics import topics

        found += [topics[name] for name in sorted(topics)]
    library = Path(sysconfig.get_path("stdlib"))
    for name in MODULES:
        path = library / f"{name}.py"
        if path.is_file():
            found.append("\n\n".join(_docstrings(path)))
    return [text for text in dict.fromkeys(found) if text]  # some topics have one text


def split_documents() -> tuple[list[str], list[str]]:
    """Texts to train on, and those that are held out."""
    texts = documents()
    shuffled = permutation(SPLIT_SEED, 0, 0, len(texts))
    cut = max(1, int(len(texts) * HELDOUT_SHARE))
    return [texts[i] for i in shuffled[cut:]], [texts[i] for i in shuffled[:cut]]


def _docstrings(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text
