"""What tests of one process share, for starting takes seconds: a bare broker, the running product.

Tests of the broker name their topics and consumer groups for themselves. Tests of the product each
have accounts and campaigns of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.embedded.kafka import EmbeddedKafka
from tests.integration.product import Product


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """A running broker on an empty directory; no topics are created by themselves."""
    with EmbeddedKafka(tmp_path_factory.mktemp("session_kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def bootstrap(kafka: EmbeddedKafka) -> str:
    """The broker's HOST:PORT."""
    return kafka.bootstrap


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """`pipeline up` by the stream's clock, shared by tests that stay within one day.

    The day is 2026-03-02 UTC: no test that uses this may publish a later timestamp, for the
    stream's clock never goes back and would close the others' days.
    """
    with Product(tmp_path_factory.mktemp("product") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def own_product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """`pipeline up` by the stream's clock, for one module that moves the clock as it likes."""
    with Product(tmp_path_factory.mktemp("own_product") / "data") as running:
        yield running
