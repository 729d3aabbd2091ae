"""Which statements only read this product's tables: decided on the engine's own parse of them.

The embedded engine has one session, so its `readonly` setting would stop the reporter's inserts
as well. So a statement is taken apart here, in two steps:

1. `plain_statement` cuts it into quoted and bare text, drops comments, and refuses what would let
   two parsers read it differently (several statements, heredocs, control and non-ASCII characters
   outside quotes). What is checked next is exactly what is run.
2. `ReadGuard` asks the engine for the statement's syntax tree (`EXPLAIN AST`, which runs nothing)
   and allows what it knows: kinds of statements, databases, table functions. A table function or a
   kind of statement that a later engine brings is refused until somebody allows it here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from pipeline.reporting.clickhouse import Store

READONLY: Final = 164
"""ClickHouse's code for what a reader may not do."""

_PIECE: Final = re.compile(
    r"""(?P<quoted>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`)
      |(?P<comment>/\*.*?\*/|--[^\n]*|\#[\ !][^\n]*)
      |(?P<bare>[^'"`])""",
    re.DOTALL | re.VERBOSE,
)
_BARE: Final = re.compile(r"[\t\n\r\x20-\x7e]")
_IDENTIFIER_PARAMETER: Final = re.compile(r":\s*Identifier\s*\}", re.IGNORECASE)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STATEMENTS: Final = _words(
    "SelectWithUnionQuery SelectIntersectExceptQuery Explain DescribeQuery ShowTables ShowColumns "
    "ShowFunctions ShowIndexes ShowCreateTableQuery ShowCreateViewQuery ShowCreateDatabaseQuery "
    "ExistsTableQuery ExistsViewQuery ExistsDatabaseQuery"
)
_DATABASES: Final = _words("billing reporting information_schema")
_SYSTEM_TABLES: Final = _words(
    "one numbers numbers_mt zeros tables columns databases functions table_functions settings "
    "data_type_families formats table_engines parts parts_columns merges mutations time_zones "
    "keywords build_options"
)
_TABLE_FUNCTIONS: Final = _words(
    "numbers numbers_mt zeros zeros_mt values generate_series generateseries primes null view"
)
_ALSO_SCALAR: Final = frozenset({"format"})
"""Table functions that share their name with a harmless function; allowed in expressions only."""
_FORBIDDEN_FUNCTIONS: Final = re.compile(
    r"file|sleep\w*|dict\w+|joinget\w*|ai[a-z]+|catboost\w*|naivebayes\w*|fuzz\w*|addressto\w+|"
    r"demangle|filesystem\w*|get(server|mergetree)setting|getclienthttpheader|structureto\w+|"
    r"currentprofiles|enabledprofiles|defaultprofiles|hostname|fullhostname|tcpport|"
    r"serveruuid|buildid|zookeepersession\w*|executable\w*|url"
)
_IN: Final = re.compile(r"(global)?(not)?(null)?in(ignoreset)?")


class RefusedQuery(Exception):
    """A query that is not a read of these tables; `code` as ClickHouse gives it."""

    def __init__(self, text: str, code: int = READONLY) -> None:
        super().__init__(text)
        self.code = code


def plain_statement(sql: str) -> str:
    """The one statement that this is, without comments. Raises `RefusedQuery`."""
    pieces: list[str] = []
    at = 0
    while at < len(sql):
        piece = _PIECE.match(sql, at)
        if piece is None:
            raise RefusedQuery("a quote is not closed", 62)
        at = piece.end()
        if piece.lastgroup == "comment":
            pieces.append(" ")
        elif piece.lastgroup == "quoted":
            pieces.append(_checked_quoted(piece.group()))
        else:
            pieces.append(piece.group())
    bare = "".join("''" if piece[0] in "'\"`" else piece for piece in pieces)
    _check_bare(bare)
    if ";" in bare.rstrip("; \t\r\n"):
        raise RefusedQuery("one statement at a time")
    return "".join(pieces).strip("; \t\r\n")


def _checked_quoted(text: str) -> str:
    if "\x00" in text:
        raise RefusedQuery("a NUL character is not taken here", 62)
    return text


def _check_bare(bare: str) -> None:
    strange = next((character for character in bare if not _BARE.match(character)), None)
    if strange is not None:
        raise RefusedQuery(f"{strange!r} is not taken outside quotes", 62)
    if "$" in bare or "/*" in bare or "*/" in bare:
        raise RefusedQuery("heredocs and nested comments are not taken here", 62)
    if _IDENTIFIER_PARAMETER.search(bare):
        raise RefusedQuery("a parameter cannot be a name here")


@dataclass(slots=True)
class _Node:
    """A node of a syntax tree as EXPLAIN AST writes it: its kind, and the rest of its line."""

    kind: str
    rest: str
    children: list[_Node] = field(default_factory=list)

    def walk(self) -> Iterator[_Node]:
        yield self
        for child in self.children:
            yield from child.walk()


def _tree(text: str) -> _Node:
    """The tree that indentation tells."""
    root = _Node("", "")
    open_nodes = [(-1, root)]
    for line in text.splitlines():
        stripped = line.lstrip(" ")
        kind, _, rest = stripped.partition(" ")
        node = _Node(kind, re.sub(r" ?\(children \d+\)$", "", rest))
        depth = len(line) - len(stripped)
        while open_nodes[-1][0] >= depth:
            open_nodes.pop()
        open_nodes[-1][1].children.append(node)
        open_nodes.append((depth, node))
    return root


class ReadGuard:
    """Checks statements against one engine."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._table_functions: frozenset[str] = frozenset()

    def check(self, sql: str, bound: Mapping[str, str]) -> None:
        """Raises `RefusedQuery` unless a plain statement only reads these tables.

        `bound`: as for `Store.raw`. Raises `StoreError` where the engine cannot parse it.
        """
        if not self._table_functions:
            rows = self._store.rows("SELECT lower(name) FROM system.table_functions")
            self._table_functions = frozenset(str(name) for [name] in rows)
        text = self._store.raw(f"EXPLAIN AST {sql}", "TabSeparatedRaw", bound).decode()
        [statement] = _tree(text).children
        if statement.kind not in _STATEMENTS:
            raise RefusedQuery(
                "only reads are allowed: SELECT, WITH, SHOW, DESCRIBE, EXISTS, EXPLAIN"
            )
        if not statement.kind.startswith(("Select", "Explain", "Describe")):
            _check_names(statement)
        for node in statement.walk():
            self._check_node(node, statement, sql)

    def _check_node(self, node: _Node, statement: _Node, sql: str) -> None:
        explains = statement.kind == "Explain" and any(node is own for own in statement.children)
        if node.kind == "Set" and not explains:
            raise RefusedQuery("settings cannot be changed here")
        if node.kind in ("SelectWithUnionQuery", "SelectIntersectExceptQuery"):
            # Its children are lists and settings; a literal is the file of INTO OUTFILE.
            if any(child.kind == "Literal" for child in node.children):
                raise RefusedQuery("INTO OUTFILE is not allowed here")
        elif node.kind == "TableIdentifier":
            _check_table(node.rest, sql)
        elif node.kind == "TableExpression":
            for child in node.children:
                if child.kind == "Function" and _name(child) not in _TABLE_FUNCTIONS:
                    raise RefusedQuery(f"{_name(child)} reaches outside the tables")
        elif node.kind == "Function":
            self._check_function(node, sql)

    def _check_function(self, node: _Node, sql: str) -> None:
        name = _name(node)
        outside = self._table_functions - _TABLE_FUNCTIONS - _ALSO_SCALAR
        if name in outside or _FORBIDDEN_FUNCTIONS.fullmatch(name):
            raise RefusedQuery(f"{name} reaches outside the tables")
        if _IN.fullmatch(name):
            # A name at the right of IN is a table.
            for arguments in node.children:
                for right in arguments.children[1:]:
                    if right.kind == "Identifier":
                        _check_table(right.rest, sql)


def _name(node: _Node) -> str:
    return node.rest.partition(" ")[0].lower()


def _check_names(statement: _Node) -> None:
    """The names in SHOW and EXISTS must be plain: others could be files."""
    for node in statement.walk():
        if node.kind == "Identifier" and not re.fullmatch(r"\w+", node.rest):
            raise RefusedQuery(f"{node.rest} is not a table here")


def _check_table(text: str, sql: str) -> None:
    """Raises `RefusedQuery` unless the text names one of these tables, or a WITH of the query.

    A name without a database would be looked up among the files of the working directory.
    """
    match = re.fullmatch(r"(?:(\w+)\.)?(\w+)(?: \(alias .*\))?", text)
    if match is None:
        raise RefusedQuery(f"{text} is not a table here")
    database, table = match.groups()
    if database is None:
        if re.search(rf'\b{table}["`]?\s+AS\s*(?:MATERIALIZED\s*)?\(', sql, re.IGNORECASE):
            return
        raise RefusedQuery(f"say which database {table} is in, as in reporting.{table}")
    if database.lower() == "system":
        if table not in _SYSTEM_TABLES:
            raise RefusedQuery(f"system.{table} is not shown here")
    elif database.lower() not in _DATABASES:
        raise RefusedQuery(f"{database} is not a database here")
