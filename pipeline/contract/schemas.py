"""The contract's messages as JSON Schema, generated from the types that decode and encode them.

`docs/schemas/` holds what this module says, and a test that the two are equal. The dialect is
draft-07, the one that AsyncAPI tools read. What no JSON Schema can say stays with the decoder:
`1.0` and `1e0` are integers to a schema and malformed to the contract, a key that stands twice is
gone before a schema sees it, and what depends on other entities is the catalog's to refuse.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from pipeline.contract.catalog_entities import KINDS, Entity
from pipeline.contract.events import EngagementEvent, Event
from pipeline.contract.field_docs import field_docs
from pipeline.contract.rejects import Reject
from pipeline.contract.signals import Signal

DIALECT: Final = "http://json-schema.org/draft-07/schema#"


@dataclass(frozen=True, slots=True)
class Message:
    """One JSON message of the contract; `name` is its schema's file name without `.json`."""

    name: str
    type: type[msgspec.Struct]


MESSAGES: Final = (
    Message("event", Event),
    Message("engagement_event", EngagementEvent),
    *(Message(kind.name, kind.entity_type) for kind in KINDS),
    Message("signal", Signal),
    Message("reject", Reject),
)


def message_schemas() -> dict[str, dict[str, Any]]:
    """Name -> JSON Schema of every message."""
    return {message.name: schema_of(message.type) for message in MESSAGES}


def schema_of(message_type: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema of one message, its fields described by the sentences in the source."""
    _, components = msgspec.json.schema_components(
        [message_type], ref_template="#/definitions/{name}"
    )
    schema = components.pop(message_type.__name__)
    if issubclass(message_type, Entity):
        optional = schema["properties"].keys() - schema.get("required", ())
        schema["properties"] |= {name: _or_null(schema["properties"][name]) for name in optional}
    schema["description"] = inspect.cleandoc(message_type.__doc__ or "")
    for field, text in field_docs(message_type).items():
        schema["properties"][field]["description"] = text
    if components:
        schema["definitions"] = components
    return {"$schema": DIALECT, **schema}


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    """Null for an optional field of an entity counts as absent (`parse_entity`)."""
    if "anyOf" in field:
        return field
    default = {"default": field["default"]}
    allowed = {name: said for name, said in field.items() if name != "default"}
    return {"anyOf": [allowed, {"type": "null"}], **default}
