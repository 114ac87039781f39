"""No module of the package imports itself through others, inside functions or not."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp


def test_modules_import_each_other_in_no_circle() -> None:
    graph = grimp.build_graph("distqat")
    assert len(graph.modules) > 300
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from error
