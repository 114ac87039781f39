"""The API reference: a page per package, of signatures and docstrings. Reads the sources, imports nothing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import docstrings

SOURCES = Path(__file__).parents[2] / "src"
PACKAGE = SOURCES / "distqat"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def write(folder: Path) -> None:
    """Write the pages of all packages into `folder`; a page that did not change keeps its time."""
    found = packages()
    pages = {f"{name}.rst": page(name, modules) for name, modules in found.items()}
    pages["index.rst"] = index(list(found))
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.rst"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def packages() -> dict[str, list[Path]]:
    """Dotted names of packages, and the files of their modules: `__init__.py` comes first."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.stem == "__init__" or not path.stem.startswith("_"):
            found.setdefault(".".join(path.parent.relative_to(SOURCES).parts), []).append(path)
    return found


def index(names: list[str]) -> str:
    """The page with the table of packages."""
    rows = []
    for name in names:
        file = SOURCES.joinpath(*name.split("."), "__init__.py")
        rows += [
            f"   * - :doc:`{name}`",
            f"     - {docstrings.inline(docstrings.first_sentence(parse(file)))}",
        ]
    return "\n".join([
        *title("API reference", "="),
        "Every public class and function, with its docstring. To program against DistQat, start with",
        ":doc:`/extending`.",
        "", ".. list-table::", "   :header-rows: 1", "", "   * - package", "     - about", *rows,
        "", ".. toctree::", "   :hidden:", "", *(f"   {name}" for name in names), "",
    ])  # fmt: skip


def page(package: str, files: list[Path]) -> str:
    """The page of a package: its modules in the order of their names, each with its public members."""
    lines = title(package, "=")
    for file in files:
        name = package if file.stem == "__init__" else f"{package}.{file.stem}"
        tree = parse(file)
        if name != package:
            lines += title(file.stem, "-")
        lines += [f".. py:module:: {name}", "", *docstrings.as_rst(ast.get_docstring(tree))]
        for node in public(tree):
            lines += described(node)
    return "\n".join(lines)


def described(node: ast.AST) -> Iterator[str]:
    """A class or function as a directive of Sphinx's Python domain."""
    if isinstance(node, ast.ClassDef):
        bases = (
            [f"Bases: ``{', '.join(ast.unparse(base) for base in node.bases)}``", ""] if node.bases else []
        )
        yield from directive("class", f"{node.name}{constructor(node)}")
        yield from indented([*bases, *docstrings.as_rst(ast.get_docstring(node))])
        for member in public(node):
            if isinstance(member, Function) and ast.get_docstring(member):
                yield from indented(list(method(member)))
    elif isinstance(node, Function) and ast.get_docstring(node):
        yield from directive("function", f"{node.name}{signature(node, bound=False)}", marks(node))
        yield from indented(docstrings.as_rst(ast.get_docstring(node)))


def method(node: Function) -> Iterator[str]:
    """A method or property, named without its class."""
    names = {ast.unparse(each) for each in node.decorator_list}
    if names & {"property", "functools.cached_property", "cached_property"}:
        kind = [f":type: {ast.unparse(node.returns)}"] if node.returns else []
        yield from directive("property", node.name, kind)
    else:
        bound = "staticmethod" not in names
        yield from directive("method", f"{node.name}{signature(node, bound=bound)}", marks(node))
    yield from indented(docstrings.as_rst(ast.get_docstring(node)))


def marks(node: Function) -> list[str]:
    """`:async:`, `:classmethod:` and the like."""
    names = {ast.unparse(each) for each in node.decorator_list}
    found = [":async:"] if isinstance(node, ast.AsyncFunctionDef) else []
    return found + [f":{name}:" for name in ("classmethod", "staticmethod") if name in names]


def public(node: ast.Module | ast.ClassDef) -> Iterator[ast.AST]:
    """Classes and functions whose names do not begin with an underscore, each name once."""
    seen = set()
    for child in node.body:
        if isinstance(child, ast.ClassDef | Function) and child.name not in seen:
            seen.add(child.name)
            if not child.name.startswith("_"):
                yield child


def signature(node: Function, *, bound: bool) -> str:
    """`(arguments) -> result`; a bound method without `self`."""
    arguments = node.args
    if bound:
        first = arguments.posonlyargs or arguments.args
        del first[:1]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({one_line(ast.unparse(arguments))}){returns}"


def constructor(node: ast.ClassDef) -> str:
    """Arguments of `__init__`, or the fields of a dataclass; empty where there are neither."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and child.name == "__init__":
            child.returns = None
            return signature(child, bound=True)
    if any("dataclass" in ast.unparse(each) for each in node.decorator_list):
        fields = [ast.unparse(child) for child in node.body if isinstance(child, ast.AnnAssign)]
        return f"({one_line(', '.join(fields))})"
    return ""


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("\\", "\\\\")


def directive(kind: str, what: str, options: Sequence[str] = ()) -> list[str]:
    return [f".. py:{kind}:: {what}", *(f"   {option}" for option in options), ""]


def indented(lines: list[str]) -> list[str]:
    return [f"   {line}" if line else "" for line in lines]


def title(text: str, rule: str) -> list[str]:
    return [text, rule * len(text), ""]


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))
