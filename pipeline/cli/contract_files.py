"""`make schemas`: writes the machine-readable contract and the settings' table into docs/.

    docs/schemas/NAME.json    a JSON Schema for each message
    docs/asyncapi.yaml        the topics (JSON text, which YAML readers read as well)
    docs/settings.md          every setting with its default and range

Tests hold the committed files against this module.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from pipeline.contract.asyncapi import asyncapi
from pipeline.contract.field_docs import field_docs
from pipeline.contract.schemas import message_schemas
from pipeline.settings import PREFIX, Settings
from pipeline.streams.topics import topic_specs

_SETTINGS_HEAD = f"""# Settings
Environment variables, read once at start. A wrong value ends the command with exit code 2 and a
line that names the variable and what is allowed; a variable that is nearly one of these is warned
of. Written by `make schemas` from `pipeline/settings.py`.

A command beside a running `pipeline up` takes what the environment leaves open from
`endpoints.json` in the data directory (`--data`, or `{PREFIX}DATA_DIR`): where Kafka and ClickHouse
are, and by what is judged: partitions, clock, grace, acceptance horizon, pacing policy and so on.
It holds no secrets: to replay, give `{PREFIX}USER_HASH_KEY` as `up` has it.

| variable | default | values | meaning |
|---|---|---|---|
"""


def contract_files() -> dict[str, str]:
    """Path under docs/ -> content, of everything that is generated there."""
    files = {f"schemas/{name}.json": _json(schema) for name, schema in message_schemas().items()}
    defaults = Settings.model_fields
    specs = topic_specs(
        defaults["partitions"].default, defaults["acceptance_horizon_days"].default, keep_all=False
    )
    files["asyncapi.yaml"] = _json(asyncapi(specs, "./schemas"))
    files["settings.md"] = settings_table()
    return files


def settings_table() -> str:
    """docs/settings.md: a row for each setting, in the order of the source."""
    docs = field_docs(Settings)
    rows = [
        f"| `{PREFIX}{name.upper()}` | {_default(field)} | {_values(field)} | {docs[name]} |\n"
        for name, field in Settings.model_fields.items()
    ]
    return _SETTINGS_HEAD + "".join(rows)


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "from others"
    default = field.default
    if isinstance(default, SecretStr):
        return "a public one" if default.get_secret_value() else "empty"
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`" if str(default) else "empty"


def _values(field: FieldInfo) -> str:
    """The type's values in words: a choice, a range, or what kind of text it is."""
    annotation: Any = field.annotation
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is types.UnionType:
        [annotation] = [part for part in get_args(annotation) if part is not types.NoneType]
    if annotation is bool:
        return "`true`, `false`"
    if annotation is int:
        return _range(field)
    return {Path: "path", SecretStr: "secret text"}.get(annotation, "text")


def _range(field: FieldInfo) -> str:
    least = next((bound.ge for bound in field.metadata if hasattr(bound, "ge")), None)
    most = next((bound.le for bound in field.metadata if hasattr(bound, "le")), None)
    if most is None:
        return "integer" if least is None else f"at least {least:,}"
    return f"{least:,} to {most:,}"


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def main(docs: Path) -> None:
    """Write the files, and remove schemas that no message has any more."""
    files = contract_files()
    (docs / "schemas").mkdir(parents=True, exist_ok=True)
    for old in (docs / "schemas").glob("*.json"):
        if f"schemas/{old.name}" not in files:
            old.unlink()
    for path, content in files.items():
        (docs / path).write_text(content, encoding="utf-8")
    print(f"wrote {len(files)} files into {docs}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
