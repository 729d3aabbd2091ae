"""A real Kafka for the whole session: starting one takes seconds, a topic of one's own is cheap.

Tests share the broker, so each names its topics and consumer groups for itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.embedded.kafka import EmbeddedKafka


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """A running broker on an empty directory; no topics are created by themselves."""
    with EmbeddedKafka(tmp_path_factory.mktemp("session_kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def bootstrap(kafka: EmbeddedKafka) -> str:
    """The broker's HOST:PORT."""
    return kafka.bootstrap
