"""docs/examples/ad_server.py does what docs/contract.md tells ad servers to do."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from pipeline.contract.signals import Signal, encode_signal
from pipeline.contract.vocabulary import MS_PER_DAY
from pipeline.pacing.serving import LimitUse, PlainLimits, Standing
from tests.docs import DOCS

DAY = 20_514


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ad_server", DOCS / "examples" / "ad_server.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def review(entity: str, spend_nanos: int, last: Signal | None, version: int) -> Signal:
    """A signal as the product decides it: a daily limit of 100 nanos, so much of it spent."""
    use = LimitUse("ad_group_daily", 100, spend_nanos)
    standing = Standing(entity, (use,), DAY, (DAY + 1) * MS_PER_DAY, last, version)
    signal = PlainLimits().review(standing, DAY * MS_PER_DAY)
    assert signal is not None
    return signal


def test_an_entity_that_nothing_was_said_of_serves(example: ModuleType) -> None:
    assert example.Serving().probability("g1", "c1") == 1.0
    assert example.Serving().serves("g1", "c1")


def test_a_pause_of_the_ad_group_or_of_its_campaign_stops_the_ad(example: ModuleType) -> None:
    for entity in ("ad_group:g1", "campaign:c1"):
        serving = example.Serving()
        serving.take(encode_signal(review(entity, 100, None, 0)))
        assert not serving.serves("g1", "c1")
        assert serving.serves("g2", "c2")


def test_a_resume_serves_again_and_a_late_resend_of_the_pause_does_not_stop_it(
    example: ModuleType,
) -> None:
    pause = review("ad_group:g1", 100, None, 0)
    resume = review("ad_group:g1", 0, pause, pause.version)
    serving = example.Serving()
    for signal in (pause, resume, pause, resume, pause):
        serving.take(encode_signal(signal))
    assert serving.probability("g1", "c1") == 1.0


def test_the_order_of_arrival_does_not_matter(example: ModuleType) -> None:
    pause = review("ad_group:g1", 100, None, 0)
    resume = review("ad_group:g1", 0, pause, pause.version)
    again = review("ad_group:g1", 120, None, resume.version)
    serving = example.Serving()
    for signal in (again, pause, resume):
        serving.take(encode_signal(signal))
    assert serving.probability("g1", "c1") == 0.0
