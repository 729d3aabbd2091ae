"""Compiled functions, also where their machine code can be kept nowhere."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

from pipeline import native
from pipeline.native import compiled

ROOT = Path(native.__file__).parent


def compiled_in(module: ast.Module) -> set[str]:
    """The names of its compiled functions."""
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    return {one.name for one in functions if any(map(is_compiled, one.decorator_list))}


def is_compiled(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Name) and decorator.id in ("compiled", "compiled_beside")


def test_a_function_of_no_file_is_compiled_though_it_cannot_be_cached() -> None:
    """As in an installation that cannot be written to: numba has no place for the code."""
    defined: dict[str, Callable[[int], int]] = {}
    exec("def twice(number):\n    return 2 * number", defined)
    twice = compiled(defined["twice"])
    assert twice(21) == 42
    assert hasattr(twice, "signatures")


def constants_in(module: ast.Module) -> set[str]:
    """Names in capitals that its compiled functions may hold: by themselves, or by a constant that
    is made of them."""
    compiled_names = compiled_in(module)
    holders = [
        node
        for node in module.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        or (isinstance(node, ast.FunctionDef) and node.name in compiled_names)
    ]
    used = (one for node in holders for one in ast.walk(node))
    return {one.id for one in used if isinstance(one, ast.Name) and one.id.isupper()}


def test_the_files_that_are_part_of_others_compiled_code_are_known() -> None:
    modules = {path: ast.parse(path.read_text()) for path in ROOT.rglob("*.py")}
    part = set()
    for module in modules.values():
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom) and node.module and compiled_in(module):
                path = ROOT.parent / (node.module.replace(".", "/") + ".py")
                names = {alias.name for alias in node.names}
                if path in modules and names & (compiled_in(modules[path]) | constants_in(module)):
                    part.add(str(path.relative_to(ROOT)))
    assert part == set(native.COMPILED_IN)
