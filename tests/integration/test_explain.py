"""Explaining an event of each disposition, and an ad group; as the documentation shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration.product import DAY_MS, MINUTE_MS, Ad, Message, Product, at, entities_of

CREATED_MS = at("2026-03-01")
NOON_MS = at("2026-03-02T12:00")
UNIT = 1_000_000_000
DOCUMENT = Path(__file__).parents[2] / "docs" / "finance.md"


@dataclass
class Story:
    """The product and its ads; `places`: where events without an event_id were published."""

    product: Product
    clicks: Ad
    places: dict[str, str] = field(default_factory=dict)

    def explain(self, what: str) -> Any:
        done = self.product.run("explain", self.places.get(what, what), "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with Product(tmp_path_factory.mktemp("explain") / "data") as product:
        shop = {"account_id": "shop"}
        clicks, first = entities_of(
            "clicks", "traffic", account=shop, ad_group={"budget_micros": 2_500_000}
        )
        seen, second = entities_of("seen", "awareness", account=shop)
        saves, third = entities_of("saves", "engagement", account=shop)
        idle, fourth = entities_of("idle", "traffic", account=shop, campaign={"status": "paused"})
        product.publish_catalog(
            *first, *second[1:], *third[1:], *fourth[1:], timestamp_ms=CREATED_MS
        )
        story = Story(product, clicks)
        home = product.publish(clicks.click("charged", NOON_MS, country="US"))[0].partition
        product.settle()
        places = product.publish(
            clicks.click("charged", NOON_MS, country="US"),
            clicks.click("repeat", NOON_MS, impression_id="impression-charged"),
            clicks.impression("counted", NOON_MS),
            clicks.click("misrouted", NOON_MS, partition=1 - home),
            clicks.click("future", NOON_MS + 10 * MINUTE_MS, record_ms=NOON_MS),
            clicks.click("expired", NOON_MS - 8 * DAY_MS, record_ms=NOON_MS),
            clicks.click("unknown", NOON_MS, promoted_pin_id="nobody"),
            idle.click("not-serving", NOON_MS),
            Message("ads.clicks", b'{"event_id": "cut of', NOON_MS, b"clicks-campaign", home),
            seen.impression("in-a-block", NOON_MS, price_micros=7_000_001),
            saves.engagement("save", "saved", NOON_MS, user_id="ann"),
            saves.engagement("save", "saved-again", NOON_MS, user_id="ann"),
        )
        malformed = places[8]
        story.places["malformed"] = f"ads.clicks-{malformed.partition}-{malformed.offset}"
        product.settle()
        product.publish(
            clicks.click("cut", NOON_MS),
            clicks.click("over-budget", NOON_MS),
        )
        product.settle()
        yield story


def last(found: list[dict[str, Any]]) -> dict[str, Any]:
    return found[-1]


@pytest.mark.parametrize(
    ("event", "disposition", "rules"),
    [
        ("malformed", "malformed", [1]),
        ("future", "future", [1, 2, 3]),
        ("expired", "expired", [1, 2, 3, 3]),
        ("unknown", "unknown", [1, 2, 3, 3, 4]),
        ("not-serving", "not_serving", [1, 2, 3, 3, 4, 5, 6]),
        ("counted", "counted", [1, 2, 3, 3, 4, 5, 6, 7]),
        ("repeat", "repeat", [1, 2, 3, 3, 4, 5, 6, 7, 8]),
        ("over-budget", "over_budget", [1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("cut", "charged", [1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10]),
    ],
)
def test_an_event_is_told_by_the_rules_up_to_the_one_that_decided(
    story: Story, event: str, disposition: str, rules: list[int]
) -> None:
    [found] = story.explain(event)
    assert found["disposition"] == disposition
    assert [rule["rule"] for rule in found["rules"]] == rules
    assert found["why"] == f"rule {rules[-1]}: {found['rules'][-1]['says']}"


def test_each_occurrence_of_an_event_is_told(story: Story) -> None:
    charged, duplicate = story.explain("charged")
    assert (charged["disposition"], duplicate["disposition"]) == ("charged", "duplicate")
    [told] = [rule for rule in duplicate["rules"] if rule["rule"] == 5]
    assert told["judged_before"] == f"{charged['source']}: charged"
    stray, judged = story.explain("misrouted")
    assert (stray["disposition"], judged["disposition"]) == ("misrouted", "charged")


def test_limits_are_told_as_they_stood_before_and_after(story: Story) -> None:
    [limit] = last(story.explain("cut"))["limits"]
    assert limit == {
        "limit": "ad_group_daily",
        "limit_nanos": 2_500_000_000,
        "spend_before_nanos": 2 * UNIT,
        "spend_after_nanos": 2_500_000_000,
    }
    [limit] = last(story.explain("over-budget"))["limits"]
    assert (limit["spend_before_nanos"], limit["spend_after_nanos"]) == (2_500_000_000,) * 2


def test_a_charge_is_told_and_an_open_block_is_said_to_be_open(story: Story) -> None:
    charged = story.explain("charged")[0]
    assert charged["charge"]["amount_nanos"] == UNIT
    assert charged["charge"]["charge_id"].startswith(charged["journal"]["record"])
    assert charged["posting_day_state"] == "open"
    assert (charged["credit"], charged["statement_line"]) == (None, None)
    assert last(story.explain("in-a-block"))["charge"] is None


def test_what_an_engagement_repeats_is_named(story: Story) -> None:
    [found] = story.explain("saved-again")
    assert found["rules"][-1]["charged_before"] == "saved"


def test_an_ad_group_says_why_it_is_stopped_and_when_it_resumes(story: Story) -> None:
    found = story.explain("ad_group:clicks-group")
    assert found["state"] == "stopped"
    [stop] = found["stopped_by"]
    assert (stop["limit"], stop["spend_nanos"]) == ("ad_group_daily", 2_500_000_000)
    assert stop["resumes"] == "2026-03-03 00:00:00.000 UTC"
    [limit] = found["limits"]
    assert (limit["limit_nanos"], limit["spend_nanos"]) == (2_500_000_000, 2_500_000_000)
    assert story.explain("ad_group:idle-group")["state"] == "campaign paused"
    assert story.explain("ad_group:seen-group")["state"] == "serving"


def test_what_nobody_knows_is_said_to_be_unknown(story: Story) -> None:
    done = story.product.run("explain", "never-published")
    assert done.returncode == 1
    assert "is not in the tables" in done.stderr


def examples() -> list[tuple[str, str]]:
    """(what is explained, what is printed) of each example in the documentation."""
    blocks = re.findall(
        r"```console\n\$ pipeline explain (\S+)\n(.*?)```", DOCUMENT.read_text(), re.S
    )
    return [(what, text) for what, text in blocks]


def settled(text: str) -> list[str]:
    """Without what depends on how events were batched: journal records and charges."""
    lines = [
        re.sub(r"\b\d+-\d+(-\d+)?\b(?!-)", "RECORD", line).split() for line in text.splitlines()
    ]
    return [" ".join(words) for words in lines if words]


def test_the_documentation_has_an_example_of_each_disposition(story: Story) -> None:
    shown = {what for what, _ in examples()}
    assert len(shown) >= 12
    for what, text in examples():
        asked = story.places["malformed"] if what.startswith("ads.") else what
        done = story.product.run("explain", asked)
        assert settled(done.stdout) == settled(text), what
