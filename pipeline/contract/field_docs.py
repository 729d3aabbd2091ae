"""The sentences under a class's fields, for documents that are generated from the code.

Python keeps no docstring of a field, so they are read from the source: the string that follows a
field's line, as everywhere in this package.
"""

from __future__ import annotations

import ast
import inspect
import textwrap


def field_docs(cls: type) -> dict[str, str]:
    """Field -> its sentences in one line, base classes' first; fields without any are left out.

    Raises `OSError` where the source is not at hand, as in a frozen application.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("pipeline."):
            found |= _own_docs(base)
    return found


def _own_docs(cls: type) -> dict[str, str]:
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = _string(after)
            if text is not None:
                docs[field.target.id] = " ".join(text.split())
    return docs


def _string(statement: ast.stmt) -> str | None:
    """The text of a statement that is nothing but a string."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        value = statement.value.value
        return value if isinstance(value, str) else None
    return None
