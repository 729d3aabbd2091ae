"""The seven topics as an AsyncAPI 3 document: who sends what under which key, and how it is kept.

Names, messages and keys are the contract's; partitions and configurations are given, by those who
create the topics. Operations are seen from this product: it receives events and the catalog.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pipeline.contract.catalog_entities import KINDS
from pipeline.contract.vocabulary import (
    CATALOG,
    CLICKS,
    ENGAGEMENTS,
    IMPRESSIONS,
    JOURNAL,
    REJECTS,
    SIGNALS,
)

ASYNCAPI_VERSION: Final = "3.0.0"
CONTRACT_VERSION: Final = "1.0.0"
"""Of topics, messages and tables: changes with them, not with every release."""

_BINDING_VERSION: Final = "0.5.0"
_SCHEMA_FORMAT: Final = "application/schema+json;version=draft-07"


class Topic(Protocol):
    """What the document needs to know of a topic, beside the contract."""

    @property
    def name(self) -> str: ...
    @property
    def partitions(self) -> int: ...
    @property
    def config(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class _Channel:
    """A topic's part of the contract."""

    action: str
    """`receive` or `send`, as this product does it; the journal it does both."""
    summary: str
    messages: tuple[str, ...]


_CAMPAIGN_KEY: Final = {"type": "string", "description": "campaign_id"}
_CHANNELS: Final = {
    IMPRESSIONS: _Channel("receive", "What Pinners saw, from the ad servers", ("impression",)),
    CLICKS: _Channel("receive", "Click-throughs, from the ad servers", ("click",)),
    ENGAGEMENTS: _Channel(
        "receive", "Closeups, saves and installs, from the ad servers", ("engagement",)
    ),
    CATALOG: _Channel(
        "receive",
        "Accounts, campaigns, ad groups and promoted pins, from campaign management",
        (*(kind.name for kind in KINDS), "deletion"),
    ),
    SIGNALS: _Channel("send", "What ad servers are to do, a level for each entity", ("signal",)),
    JOURNAL: _Channel("send", "Everything that a shard decided", ("journal_record",)),
    REJECTS: _Channel("send", "What could not be judged or was refused", ("reject",)),
}


def asyncapi(topics: Iterable[Topic], schemas_path: str) -> dict[str, Any]:
    """The document; message schemas are references to files under `schemas_path`."""
    by_name = {topic.name: topic for topic in topics}
    return {
        "asyncapi": ASYNCAPI_VERSION,
        "info": {
            "title": "Promoted pins pipeline",
            "version": CONTRACT_VERSION,
            "description": "Streaming billing and pacing for promoted pins. What each field "
            "means, and how events are judged, is told in contract.md.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(by_name[name]) for name in _CHANNELS},
        "operations": {
            f"{channel.action}.{name}": {
                "action": channel.action,
                "channel": {"$ref": f"#/channels/{name}"},
                "summary": channel.summary,
            }
            for name, channel in _CHANNELS.items()
        },
        "components": {"messages": _messages(schemas_path)},
    }


def _channel(topic: Topic) -> dict[str, Any]:
    """A topic with its messages and its Kafka configuration."""
    channel = _CHANNELS[topic.name]
    return {
        "address": topic.name,
        "summary": channel.summary,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in channel.messages},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": {
                    name: _config_value(name, text) for name, text in topic.config.items()
                },
                "bindingVersion": _BINDING_VERSION,
            }
        },
    }


def _config_value(name: str, text: str) -> Any:
    """As the binding wants it: policies are a list, all other settings of ours are numbers."""
    return text.split(",") if name == "cleanup.policy" else int(text)


def _messages(schemas_path: str) -> dict[str, Any]:
    def json_message(schema: str, key: Mapping[str, Any]) -> dict[str, Any]:
        reference = {"$ref": f"{schemas_path}/{schema}.json"}
        return _message({"schemaFormat": _SCHEMA_FORMAT, "schema": reference}, key)

    entities = {
        kind.name: json_message(kind.name, _prefixed_key(kind.prefix, kind.id_field))
        for kind in KINDS
    }
    entity_key = {"type": "string", "description": "The key of the entity to delete"}
    signal_key = {"type": "string", "pattern": "^(ad_group|campaign):", "description": "entity"}
    reject_key = {"type": "string", "description": "Source topic-partition-offset"}
    journal_value = {
        "type": "string",
        "format": "binary",
        "description": "docs/journal.md; the partition is the shard, there is no key",
    }
    return {
        "impression": json_message("event", _CAMPAIGN_KEY),
        "click": json_message("event", _CAMPAIGN_KEY),
        "engagement": json_message("engagement_event", _CAMPAIGN_KEY),
        **entities,
        "deletion": _message({"type": "null"}, entity_key),
        "signal": json_message("signal", signal_key),
        "journal_record": _message(journal_value, None)
        | {"contentType": "application/octet-stream"},
        "reject": json_message("reject", reject_key),
    }


def _message(payload: Mapping[str, Any], key: Mapping[str, Any] | None) -> dict[str, Any]:
    bindings = {"bindingVersion": _BINDING_VERSION} | ({} if key is None else {"key": key})
    return {"payload": payload, "bindings": {"kafka": bindings}}


def _prefixed_key(prefix: str, id_field: str) -> dict[str, Any]:
    return {
        "type": "string",
        "pattern": f"^{prefix}:.",
        "description": f"`{prefix}:` and the value's {id_field}",
    }
