"""The auditor against cases worked out by hand: they are to catch a wrong auditor.

Unless a test says otherwise: one shard, an account a1 in the US (USD, UTC), a traffic campaign c1
without limits, an ad group g1 (daily budget 10 USD, bid 0.50 USD) from 1 March 2024 on, an approved
pin p1; an event is a click at noon of 4 March for 0.30 USD, read and judged that very moment.
"""

from __future__ import annotations

import json
from datetime import date, datetime
from typing import Any

import pytest

from tests.auditor import (
    Auditor,
    CatalogRecord,
    SourceRecord,
    Verdict,
    murmur2,
    partition_of,
)

IMPRESSIONS = "ads.impressions"
CLICKS = "ads.clicks"
ENGAGEMENTS = "ads.engagements"

SECOND = 1000
DAY = 86_400_000
ABSENT: Any = object()


def ms(text: str) -> int:
    """Milliseconds of an ISO time in UTC."""
    return int(datetime.fromisoformat(text + "+00:00").timestamp() * 1000)


MARCH_1 = ms("2024-03-01T00:00:00")
NOON = ms("2024-03-04T12:00:00")
TODAY = date(2024, 3, 4)

ACCOUNT = {"account_id": "a1", "country": "US", "currency": "USD"}
CAMPAIGN = {"campaign_id": "c1", "account_id": "a1", "objective": "traffic"}
AD_GROUP = {
    "ad_group_id": "g1",
    "campaign_id": "c1",
    "budget_type": "daily",
    "budget_micros": 10_000_000,
    "bid_micros": 500_000,
    "start_ms": MARCH_1,
}
PIN = {"promoted_pin_id": "p1", "ad_group_id": "g1", "review": "approved"}
EVENT = {
    "event_id": "e1",
    "event_time_ms": NOON,
    "campaign_id": "c1",
    "ad_group_id": "g1",
    "promoted_pin_id": "p1",
    "user_id": "u1",
    "impression_id": "i1",
    "price_micros": 300_000,
    "placement": "browse",
}


def changed(body: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**body, **changes}.items() if value is not ABSENT}


class World:
    """An auditor, fed with the defaults above."""

    def __init__(self, partitions: int = 1, **auditor: int) -> None:
        self.auditor = Auditor(partitions, **auditor)
        self._offset = 0

    def publish(self, key: str, value: object, timestamp_ms: int = MARCH_1) -> str | None:
        """Publish bytes, a deletion (None) or an entity; the refusal's reason."""
        if value is not None and not isinstance(value, bytes):
            value = json.dumps(value).encode()
        self._offset += 1
        return self.auditor.catalog(CatalogRecord(self._offset, timestamp_ms, key, value))

    def account(self, **changes: Any) -> str | None:
        body = changed(ACCOUNT, changes)
        return self.publish(f"account:{body['account_id']}", body)

    def campaign(self, **changes: Any) -> str | None:
        body = changed(CAMPAIGN, changes)
        return self.publish(f"campaign:{body['campaign_id']}", body)

    def ad_group(self, **changes: Any) -> str | None:
        body = changed(AD_GROUP, changes)
        return self.publish(f"ad_group:{body['ad_group_id']}", body)

    def pin(self, **changes: Any) -> str | None:
        body = changed(PIN, changes)
        return self.publish(f"promoted_pin:{body['promoted_pin_id']}", body)

    def fx(self, day: str, **rates: str) -> str | None:
        return self.publish(f"fx:{day}", {"fx_day": day, "usd_per_unit": rates})

    def judge_bytes(
        self, topic: str, value: bytes | None, timestamp_ms: int = NOON, partition: int = 0
    ) -> Verdict:
        self._offset += 1
        record = SourceRecord(topic, partition, self._offset, timestamp_ms, None, value)
        return self.auditor.judge(record, timestamp_ms)

    def judge(
        self,
        event_id: str,
        topic: str = CLICKS,
        *,
        now_ms: int | None = None,
        timestamp_ms: int | None = None,
        partition: int = 0,
        **changes: Any,
    ) -> Verdict:
        """Judge an event; its record's timestamp and now default to the event's own time."""
        event = changed(EVENT, {"event_id": event_id, **changes})
        if timestamp_ms is None:
            timestamp_ms = event["event_time_ms"]
        self._offset += 1
        value = json.dumps(event).encode()
        record = SourceRecord(topic, partition, self._offset, timestamp_ms, b"c1", value)
        return self.auditor.judge(record, timestamp_ms if now_ms is None else now_ms)


def world(
    campaign: dict[str, Any] | None = None,
    ad_group: dict[str, Any] | None = None,
    account: dict[str, Any] | None = None,
    pin: dict[str, Any] | None = None,
    **auditor: int,
) -> World:
    made = World(**auditor)
    assert made.account(**(account or {})) is None
    assert made.campaign(**(campaign or {})) is None
    assert made.ad_group(**(ad_group or {})) is None
    assert made.pin(**(pin or {})) is None
    return made


def cpm_world(**ad_group: Any) -> World:
    return world({"objective": "awareness"}, {"bid_micros": 9_000_000, **ad_group})


# --- Keys and partitions -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "signed"),
    [  # the vectors of Apache Kafka's own UtilsTest, as Java prints them
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_kafkas(data: bytes, signed: int) -> None:
    assert murmur2(data) == signed % 2**32


def test_a_negative_hash_is_masked_not_negated() -> None:
    """-973932308 & 0x7fffffff = 1173551340 = 4 * 293387835 = 7 * 167650191 + 3"""
    assert partition_of("21", 4) == 0
    assert partition_of("21", 7) == 3


# --- Rule 1: malformed ---------------------------------------------------------------------------


def event_bytes(**changes: Any) -> bytes:
    return json.dumps(changed(EVENT, changes)).encode()


WHOLE = event_bytes().decode()

MALFORMED = {
    "null value": None,
    "empty": b"",
    "not JSON": b"{",
    "two objects": event_bytes() + event_bytes(),
    "not an object": b"[" + event_bytes() + b"]",
    "JSON null": b"null",
    "Latin-1": event_bytes(user_id="U").replace(b"U", b"\xe9"),
    "byte order mark": b"\xef\xbb\xbf" + event_bytes(),
    "an encoded surrogate": event_bytes(user_id="U").replace(b"U", b"\xed\xa0\x80"),
    "a lone escaped surrogate": event_bytes(user_id="\ud800"),
    "a lone surrogate in an extra field": event_bytes(extra=["\ud800"]),
    "NaN in an extra field": event_bytes(extra=float("nan")),
    "Infinity in an extra field": event_bytes(extra=-float("inf")),
    "a name twice, same value": WHOLE.replace("{", '{"event_id": "e1", ').encode(),
    "an extra name twice": WHOLE.replace("{", '{"x": 1, "x": 2, ').encode(),
    "a name twice, once escaped": WHOLE.replace("{", '{"event\\u005fid": "e1", ').encode(),
    "raw control character": event_bytes(user_id="U").replace(b"U", b"\n"),
    **{f"no {name}": event_bytes(**{name: ABSENT}) for name in EVENT},
    **{f"null {name}": event_bytes(**{name: None}) for name in [*EVENT, "country", "device"]},
    "null keyword": event_bytes(keyword=None),
    **{
        f"{name} a number": event_bytes(**{name: 1})
        for name in [*EVENT, "country", "device", "keyword"]
        if name not in ("event_time_ms", "price_micros")
    },
    **{
        f"{name} {bad!r}": event_bytes(**{name: bad})
        for name in ("event_time_ms", "price_micros")
        for bad in (1.0, True, "1", [1], 2**63, -(2**63) - 1)
    },
    "a price under 0": event_bytes(price_micros=-1),
    "an exponent": event_bytes(price_micros=12345).replace(b"12345", b"3e5"),
    "a leading zero": event_bytes(price_micros=12345).replace(b"12345", b"012345"),
    "a plus sign": event_bytes(price_micros=12345).replace(b"12345", b"+12345"),
    "10,000 digits": event_bytes(price_micros=12345).replace(b"12345", b"1" * 10_000),
    "empty event_id": event_bytes(event_id=""),
    "event_id of 129": event_bytes(event_id="x" * 129),
    **{
        f"NUL in {name}": event_bytes(**{name: "x\0"})
        for name in [*EVENT, "country", "device", "keyword"]
        if name not in ("event_time_ms", "price_micros")
    },
    "placement home": event_bytes(placement="home"),
    "placement Browse": event_bytes(placement="Browse"),
    "placement all": event_bytes(placement="all"),
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_not_of_the_contracts_form_is_malformed(value: bytes | None) -> None:
    """A malformed event's row has its source and its record's UTC day, and nothing else."""
    timestamp_ms = ms("2024-03-04T23:59:59")
    verdict = world(partitions=4).judge_bytes(CLICKS, value, timestamp_ms, partition=2)
    assert verdict == Verdict(
        topic=CLICKS,
        partition=2,
        offset=5,
        disposition="malformed",
        limit="",
        amount_nanos=0,
        free_nanos=0,
        billing_day=TODAY,
        account_id="",
        campaign_id="",
        ad_group_id="",
        promoted_pin_id="",
        kind="",
        event_id="",
        price_micros=0,
        basis="",
    )


@pytest.mark.parametrize(
    "kind",
    [ABSENT, None, "", "click", "impression", "Save", 1, ["save"]],
    ids=lambda kind: "absent" if kind is ABSENT else repr(kind),
)
def test_an_engagement_says_its_kind(kind: object) -> None:
    verdict = world().judge_bytes(ENGAGEMENTS, event_bytes(kind=kind))
    assert verdict.disposition == "malformed"


WELL_FORMED = {
    "as it is": event_bytes(),
    "white space": b" \r\n\t" + event_bytes() + b"\n",
    "unknown fields": event_bytes(extra={"a": [1.5, None, True]}, other=None),
    "a name twice in an extra object": WHOLE.replace("{", '{"x": {"y": 1, "y": 2}, ', 1).encode(),
    "a big number in an extra field": event_bytes(extra="?").replace(b'"?"', b"7" * 5000),
    "a fraction in an extra field": event_bytes(extra=1e300),
    "kind of another topic": event_bytes(kind=["no", 1]),
    "kind null": event_bytes(kind=None),
    "128 characters, 512 bytes": event_bytes(event_id="\U0001f600" * 128),
    "long ids": event_bytes(user_id="u" * 5_000, impression_id="i" * 257),
    "ids of one character and of none": event_bytes(event_id="e", user_id="", impression_id=""),
    "optional fields": event_bytes(country="US", device="web", keyword="k" * 257),
    "optional fields, empty": event_bytes(country="", device="", keyword=""),
    "raw UTF-8": json.dumps({**EVENT, "user_id": "é\U0001f600"}, ensure_ascii=False).encode(),
    "search": event_bytes(placement="search"),
}


@pytest.mark.parametrize("value", WELL_FORMED.values(), ids=WELL_FORMED.keys())
def test_what_is_of_the_contracts_form_is_judged(value: bytes) -> None:
    verdict = world().judge_bytes(CLICKS, value)
    assert (verdict.disposition, verdict.amount_nanos) == ("charged", 300_000_000)


def test_another_topic_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="not an event topic"):
        world().judge_bytes("pacing.signals", event_bytes())


# --- Rule 2: misrouted ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("campaign_id", "partition"),
    [("c1", 3), ("c2", 1), ("100", 1), ("a", 0), ("é", 3)],
)
def test_an_event_belongs_to_its_campaigns_partition(campaign_id: str, partition: int) -> None:
    """Whatever the catalog knows: elsewhere it is misrouted, at home it is judged."""
    for candidate in range(4):
        verdict = World(partitions=4).judge("e1", campaign_id=campaign_id, partition=candidate)
        expected = "unknown" if candidate == partition else "misrouted"
        assert verdict.disposition == expected


def test_a_misrouted_event_comes_before_its_time_is_looked_at_and_leaves_no_trace() -> None:
    """c1 is of partition 3 of 4."""
    shards = world(partitions=4)
    misrouted = shards.judge("e1", partition=0, timestamp_ms=NOON + 30 * DAY)
    assert misrouted.disposition == "misrouted"
    assert (misrouted.billing_day, misrouted.account_id) == (date(2024, 4, 3), "")
    assert (misrouted.campaign_id, misrouted.event_id, misrouted.kind) == ("c1", "e1", "click")
    assert misrouted.price_micros == 300_000
    assert shards.judge("e1", partition=3).disposition == "charged"


# --- Rule 3: future and expired ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timestamp_ms", "disposition"),
    [
        (NOON - 300_001, "future"),
        (NOON - 300_000, "charged"),
        (NOON + 7 * DAY, "charged"),
        (NOON + 7 * DAY + 1, "expired"),
    ],
)
def test_an_event_is_held_against_its_records_own_timestamp(
    timestamp_ms: int, disposition: str
) -> None:
    """Never against now, which is a month later here."""
    verdict = world().judge("e1", timestamp_ms=timestamp_ms, now_ms=NOON + 30 * DAY)
    assert verdict.disposition == disposition


def test_the_horizon_is_a_setting() -> None:
    short = world(horizon_days=2)
    assert short.judge("e1", timestamp_ms=NOON + 2 * DAY).disposition == "charged"
    assert short.judge("e2", timestamp_ms=NOON + 2 * DAY + 1).disposition == "expired"


def test_the_ends_of_int64_are_times_like_others() -> None:
    assert world().judge_bytes(CLICKS, event_bytes(event_time_ms=2**63 - 1)).disposition == "future"
    assert world().judge_bytes(CLICKS, event_bytes(event_time_ms=0)).disposition == "expired"


def test_an_event_out_of_time_carries_its_records_day_and_is_not_remembered() -> None:
    """The record is of 11 March 12:00:01 UTC; the ad's account is not looked up."""
    late = world()
    expired = late.judge("e1", timestamp_ms=NOON + 7 * DAY + SECOND)
    assert expired.disposition == "expired"
    assert (expired.billing_day, expired.account_id) == (date(2024, 3, 11), "")
    assert (expired.ad_group_id, expired.promoted_pin_id) == ("g1", "p1")
    assert late.judge("e1").disposition == "charged"


def test_time_comes_before_the_catalog() -> None:
    assert World().judge("e1", timestamp_ms=NOON - DAY).disposition == "future"


# --- Rule 4: unknown -----------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["campaign_id", "ad_group_id", "promoted_pin_id"])
def test_an_ad_that_is_not_in_the_catalog_is_unknown_and_can_be_redriven(field: str) -> None:
    shard = world()
    other: dict[str, Any] = {field: "other"}
    unknown = shard.judge("e1", **other)
    assert (unknown.disposition, unknown.account_id) == ("unknown", "")
    assert unknown.billing_day == TODAY
    assert shard.judge("e1").disposition == "charged"


def test_parts_that_are_not_each_others_are_unknown() -> None:
    shard = world()
    shard.campaign(campaign_id="c2")
    shard.ad_group(ad_group_id="g2", campaign_id="c2")
    shard.pin(promoted_pin_id="p2", ad_group_id="g2")
    assert shard.judge("e1", campaign_id="c2").disposition == "unknown"
    assert shard.judge("e2", promoted_pin_id="p2").disposition == "unknown"
    assert shard.judge("e3", ad_group_id="g2").disposition == "unknown"
    assert shard.judge("e4", ad_group_id="g2", promoted_pin_id="p2").disposition == "unknown"
    whole = shard.judge("e5", campaign_id="c2", ad_group_id="g2", promoted_pin_id="p2")
    assert whole.disposition == "charged"


@pytest.mark.parametrize("key", ["account:a1", "campaign:c1", "ad_group:g1", "promoted_pin:p1"])
def test_a_deletion_makes_events_unknown_at_once_until_published_again(key: str) -> None:
    """Even for events of a time before the deletion; children come back with their parent."""
    shard = world()
    assert shard.publish(key, None, NOON + DAY) is None
    assert shard.judge("e1").disposition == "unknown"
    {"a": shard.account, "c": shard.campaign, "g": shard.ad_group, "p": shard.pin}[key[-2]]()
    assert shard.judge("e1").disposition == "charged"


def test_a_version_that_takes_effect_later_makes_the_ad_known_now() -> None:
    """The first version reaches back."""
    later = NOON + DAY
    shard = world(
        {"effective_ms": later},
        {"effective_ms": later, "start_ms": 0},
        {"effective_ms": later},
        {"effective_ms": later},
    )
    assert shard.judge("e1").disposition == "charged"


# --- Rule 5: duplicate ---------------------------------------------------------------------------


def test_an_event_id_counts_across_the_three_topics() -> None:
    shard = world()
    assert shard.judge("e1", IMPRESSIONS).disposition == "counted"
    duplicate = shard.judge("e1", CLICKS)
    assert duplicate.disposition == "duplicate"
    assert duplicate.account_id == "a1"
    assert duplicate.amount_nanos == duplicate.free_nanos == 0
    assert shard.judge("e1", ENGAGEMENTS, kind="save").disposition == "duplicate"


def test_a_duplicates_day_is_its_records_utc_day() -> None:
    """The event is of 3 March in New York, the record of 4 March in UTC."""
    shard = world(account={"time_zone": "America/New_York"})
    time_ms = ms("2024-03-04T02:00:00")
    assert shard.judge("e1", event_time_ms=time_ms).billing_day == date(2024, 3, 3)
    assert shard.judge("e1", event_time_ms=time_ms).billing_day == date(2024, 3, 4)


@pytest.mark.parametrize(
    ("first", "disposition"),
    [
        ({"event_time_ms": MARCH_1 - 1}, "not_serving"),
        ({"topic": IMPRESSIONS}, "counted"),
        ({"impression_id": "i0"}, "repeat"),
        ({"ad_group_id": "g2", "promoted_pin_id": "p2"}, "over_budget"),
        ({}, "charged"),
    ],
)
def test_each_later_disposition_is_remembered(first: dict[str, Any], disposition: str) -> None:
    shard = world()
    shard.judge("e0", impression_id="i0")
    shard.ad_group(ad_group_id="g2", budget_micros=1)
    shard.pin(promoted_pin_id="p2", ad_group_id="g2")
    shard.judge("e00", ad_group_id="g2", promoted_pin_id="p2", impression_id="i00")
    assert shard.judge("e1", **first).disposition == disposition
    assert shard.judge("e1", impression_id="fresh").disposition == "duplicate"


def test_a_malformed_event_is_not_remembered() -> None:
    shard = world()
    assert shard.judge("e1", price_micros=-1).disposition == "malformed"
    assert shard.judge("e1").disposition == "charged"


def test_shards_do_not_know_each_others_ids() -> None:
    """Neither an event_id nor an impression_id: c1 is of partition 3 of 4, c2 of 1."""
    shards = world(partitions=4)
    shards.campaign(campaign_id="c2")
    shards.ad_group(ad_group_id="g2", campaign_id="c2")
    shards.pin(promoted_pin_id="p2", ad_group_id="g2")
    second: dict[str, Any] = {"campaign_id": "c2", "ad_group_id": "g2", "promoted_pin_id": "p2"}
    assert shards.judge("e1", partition=3).disposition == "charged"
    assert shards.judge("e1", partition=1, **second).disposition == "charged"
    assert shards.judge("e1", partition=1, **second).disposition == "duplicate"


# --- Rule 6: not serving -------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["paused", "archived"])
@pytest.mark.parametrize("entity", ["campaign", "ad_group", "pin"])
def test_an_ad_that_was_stopped_is_free(entity: str, status: str) -> None:
    stopped: dict[str, Any] = {entity: {"status": status}}
    not_serving = world(**stopped).judge("e1")
    assert not_serving.disposition == "not_serving"
    assert (not_serving.account_id, not_serving.billing_day) == ("a1", TODAY)
    assert (not_serving.amount_nanos, not_serving.free_nanos) == (0, 0)
    assert (not_serving.limit, not_serving.basis) == ("", "")


@pytest.mark.parametrize("review", ["pending", "rejected", ABSENT])
def test_a_pin_that_is_not_approved_is_free(review: str) -> None:
    assert world(pin={"review": review}).judge("e1").disposition == "not_serving"


@pytest.mark.parametrize(
    ("time_ms", "disposition"),
    [
        (NOON - 1, "not_serving"),
        (NOON, "charged"),
        (NOON + SECOND - 1, "charged"),
        (NOON + SECOND, "not_serving"),
    ],
)
def test_an_ad_group_serves_from_its_start_until_before_its_end(
    time_ms: int, disposition: str
) -> None:
    shard = world(ad_group={"start_ms": NOON, "end_ms": NOON + SECOND})
    assert shard.judge("e1", event_time_ms=time_ms).disposition == disposition


@pytest.mark.parametrize(
    ("created", "starts"),
    [
        ("2024-03-04T00:00:00", "2024-03-05T00:00:00"),  # strictly after
        ("2024-03-04T00:00:01", "2024-03-05T00:00:00"),
        ("2024-03-04T23:59:59", "2024-03-05T00:00:00"),
    ],
)
def test_a_continuous_ad_group_starts_at_the_next_utc_midnight(created: str, starts: str) -> None:
    """In UTC, whatever the account's zone."""
    shard = world(
        account={"time_zone": "Asia/Tokyo"},
        ad_group={"start_ms": ABSENT, "effective_ms": ms(created)},
    )
    assert shard.judge("e1", event_time_ms=ms(starts) - 1).disposition == "not_serving"
    assert shard.judge("e2", event_time_ms=ms(starts)).disposition == "charged"


def test_a_continuous_ad_group_was_created_when_it_was_first_read_of() -> None:
    """Not by the version of 2 March, which was read second, nor by that of 5 March."""
    shard = world(ad_group={"start_ms": ABSENT, "effective_ms": ms("2024-03-03T09:00:00")})
    shard.ad_group(start_ms=ABSENT, effective_ms=ms("2024-03-02T09:00:00"))
    shard.ad_group(start_ms=ABSENT, effective_ms=ms("2024-03-05T09:00:00"))
    midnight = ms("2024-03-04T00:00:00")
    assert shard.judge("e1", event_time_ms=midnight - 1).disposition == "not_serving"
    assert shard.judge("e2", event_time_ms=midnight).disposition == "charged"
    noon_5 = ms("2024-03-05T12:00:00")
    assert shard.judge("e3", event_time_ms=noon_5, impression_id="i3").disposition == "charged"


def test_a_continuous_ad_groups_end_still_ends_it() -> None:
    shard = world(ad_group={"start_ms": None, "end_ms": NOON})
    assert shard.judge("e1", event_time_ms=NOON - 1).disposition == "charged"
    assert shard.judge("e2", event_time_ms=NOON).disposition == "not_serving"


def test_a_deletion_forgets_when_an_ad_group_was_created() -> None:
    shard = world(ad_group={"start_ms": ABSENT})
    shard.publish("ad_group:g1", None)
    shard.ad_group(start_ms=ABSENT, effective_ms=NOON)
    assert shard.judge("e1", event_time_ms=NOON).disposition == "not_serving"


def test_an_event_is_judged_by_what_was_in_force_at_its_time() -> None:
    """Paused from 11:00 to 13:00; the 11:00 version is read last, and put at its place."""
    shard = world(campaign={"effective_ms": MARCH_1})
    eleven, one = ms("2024-03-04T11:00:00"), ms("2024-03-04T13:00:00")
    shard.campaign(effective_ms=one)
    shard.campaign(effective_ms=eleven, status="paused")
    judged = [
        shard.judge(f"e{time_ms}", event_time_ms=time_ms, impression_id=f"i{time_ms}").disposition
        for time_ms in (eleven - 1, eleven, one - 1, one)
    ]
    assert judged == ["charged", "not_serving", "not_serving", "charged"]


def test_of_versions_that_take_effect_together_the_later_read_counts() -> None:
    shard = world()
    shard.pin(effective_ms=MARCH_1, status="paused")
    assert shard.judge("e1").disposition == "not_serving"
    shard.pin(effective_ms=MARCH_1)
    assert shard.judge("e2").disposition == "charged"


def test_without_effective_ms_the_records_timestamp_counts() -> None:
    shard = world()
    shard.publish("promoted_pin:p1", {**PIN, "status": "paused", "effective_ms": None}, NOON)
    assert shard.judge("e1", event_time_ms=NOON - 1).disposition == "charged"
    assert shard.judge("e2", event_time_ms=NOON).disposition == "not_serving"


# --- Rule 7: counted -----------------------------------------------------------------------------

BILLABLE = {
    "traffic": {"click": "cpc"},
    "app_install": {"click": "cpc"},
    "engagement": {"click": "cpe", "closeup": "cpe", "save": "cpe"},
    "awareness": {"impression": "cpm"},
    "video_awareness": {"impression": "cpm"},
}


@pytest.mark.parametrize("kind", ["impression", "click", "closeup", "save", "install"])
@pytest.mark.parametrize("objective", BILLABLE)
def test_what_is_billable_depends_on_the_objective(objective: str, kind: str) -> None:
    shard = world({"objective": objective}, {"bid_micros": 6_000_000})
    if kind in ("impression", "click"):
        verdict = shard.judge("e1", f"ads.{kind}s")
    else:
        verdict = shard.judge("e1", ENGAGEMENTS, kind=kind)
    basis = BILLABLE[objective].get(kind, "")
    assert verdict.kind == kind
    assert verdict.basis == basis
    assert verdict.disposition == ("charged" if basis else "counted")
    # 0.30 USD for one click or engagement; for 1,000 impressions, so a thousandth for one
    assert (
        verdict.amount_nanos
        == {"": 0, "cpc": 300_000_000, "cpe": 300_000_000, "cpm": 300_000}[basis]
    )


def test_a_target_cpi_ad_group_is_charged_by_the_click() -> None:
    shard = world({"objective": "app_install"}, {"bid_strategy": "target_cpi"})
    assert shard.judge("e1").basis == "cpc"
    assert shard.judge("e2", ENGAGEMENTS, kind="install").disposition == "counted"


def test_the_objective_is_the_one_at_the_events_time() -> None:
    shard = world()
    shard.campaign(objective="engagement", effective_ms=NOON)
    assert shard.judge("e1", event_time_ms=NOON - 1, now_ms=NOON).basis == "cpc"
    assert shard.judge("e2", event_time_ms=NOON, user_id="u2").basis == "cpe"


# --- Rule 8: repeat ------------------------------------------------------------------------------


def test_a_served_insertion_is_charged_for_one_click() -> None:
    """By its impression_id alone, for ever: whoever clicks, on whatever day."""
    shard = world()
    assert shard.judge("e1").disposition == "charged"
    repeat = shard.judge("e2", user_id="u2", event_time_ms=NOON + 3 * DAY)
    assert repeat.disposition == "repeat"
    assert (repeat.amount_nanos, repeat.free_nanos, repeat.basis) == (0, 0, "")
    assert shard.judge("e3", impression_id="i2").disposition == "charged"


def test_a_click_that_was_not_charged_does_not_make_the_next_one_a_repeat() -> None:
    """The budget of 0.30 USD is used up; then raised: the second click of i2 is charged."""
    shard = world(ad_group={"budget_micros": 300_000})
    assert shard.judge("e1").disposition == "charged"
    assert shard.judge("e2", impression_id="i2").disposition == "over_budget"
    shard.ad_group(budget_micros=600_000)
    assert shard.judge("e3", impression_id="i2").disposition == "charged"
    assert shard.judge("e4", impression_id="i2").disposition == "repeat"


def test_a_click_charged_nothing_is_charged_all_the_same() -> None:
    shard = world()
    assert shard.judge("e1", price_micros=0).disposition == "charged"
    assert shard.judge("e2").disposition == "repeat"


def test_each_unique_engagement_is_charged_once_a_billing_day() -> None:
    """Unique: pin, Pinner, kind and billing day; the impression_id is of no account."""
    shard = world({"objective": "engagement"})
    shard.pin(promoted_pin_id="p2")
    save: dict[str, Any] = {"topic": ENGAGEMENTS, "kind": "save"}
    assert shard.judge("e1", **save).disposition == "charged"
    assert shard.judge("e2", **save, impression_id="i2").disposition == "repeat"
    assert shard.judge("e3", **save, user_id="u2").disposition == "charged"
    assert shard.judge("e4", **save, promoted_pin_id="p2").disposition == "charged"
    assert shard.judge("e5", ENGAGEMENTS, kind="closeup").disposition == "charged"
    assert shard.judge("e6", CLICKS).disposition == "charged"
    assert shard.judge("e7", CLICKS, impression_id="i7").disposition == "repeat"
    assert shard.judge("e8", **save, event_time_ms=NOON + DAY).disposition == "charged"


def test_the_day_of_an_engagement_is_the_accounts() -> None:
    """00:00 in New York is 05:00 UTC: 04:59 and 05:00 are two days, 05:00 and 23:00 are one."""
    shard = world({"objective": "engagement"}, account={"time_zone": "America/New_York"})
    times = ("2024-03-04T04:59:59", "2024-03-04T05:00:00", "2024-03-04T23:00:00")
    judged = [shard.judge(f"e{time}", event_time_ms=ms(time)).disposition for time in times]
    assert judged == ["charged", "charged", "repeat"]


def test_a_charge_is_remembered_over_a_change_of_objective() -> None:
    """A charged click is a charged click, whatever it was charged as; a save is no click."""
    shard = world({"objective": "engagement"})
    assert shard.judge("e1", CLICKS, impression_id="i1").basis == "cpe"
    assert shard.judge("e2", ENGAGEMENTS, kind="save", impression_id="i2").basis == "cpe"
    shard.campaign(objective="traffic")
    assert shard.judge("e3", CLICKS, impression_id="i1").disposition == "repeat"
    assert shard.judge("e4", CLICKS, impression_id="i2").basis == "cpc"
    assert shard.judge("e5", CLICKS, impression_id="i5", user_id="u5").basis == "cpc"
    shard.campaign(objective="engagement")
    assert shard.judge("e6", CLICKS, impression_id="i6", user_id="u5").disposition == "repeat"


def test_every_charged_impression_counts() -> None:
    shard = cpm_world()
    assert shard.judge("e1", IMPRESSIONS).disposition == "charged"
    assert shard.judge("e2", IMPRESSIONS).disposition == "charged"


# --- Rule 9: price -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price_micros", "keyword", "amount_nanos"),
    [
        (300_000, ABSENT, 300_000_000),
        (500_000, ABSENT, 500_000_000),
        (500_001, ABSENT, 500_000_000),  # the ad group's bid
        (2**63 - 1, ABSENT, 500_000_000),
        (900_000, "lamp", 800_000_000),  # the keyword's bid, above the ad group's
        (700_000, "lamp", 700_000_000),
        (300_000, "rug", 200_000_000),  # the keyword's bid, below the ad group's
        (900_000, "Lamp", 500_000_000),  # not a keyword of the ad group's
        (0, "lamp", 0),
    ],
)
def test_the_price_is_at_most_the_bid(price_micros: int, keyword: str, amount_nanos: int) -> None:
    shard = world(ad_group={"keyword_bids_micros": {"lamp": 800_000, "rug": 200_000}})
    verdict = shard.judge("e1", price_micros=price_micros, keyword=keyword)
    assert (verdict.disposition, verdict.amount_nanos) == ("charged", amount_nanos)
    assert verdict.price_micros == price_micros  # the event's own
    assert (verdict.free_nanos, verdict.limit) == (0, "")


def test_the_bid_is_the_one_at_the_events_time() -> None:
    shard = world()
    shard.ad_group(bid_micros=200_000, effective_ms=NOON)
    before = shard.judge("e1", event_time_ms=NOON - 1, now_ms=NOON + DAY)
    assert before.amount_nanos == 300_000_000
    assert shard.judge("e2", impression_id="i2").amount_nanos == 200_000_000


def test_an_impression_costs_a_thousandth_of_its_cpm_exactly() -> None:
    """2.123457 USD for 1,000: 2,123,457 nanos for one, capped at the bid of 9 USD."""
    shard = cpm_world()
    assert shard.judge("e1", IMPRESSIONS, price_micros=2_123_457).amount_nanos == 2_123_457
    assert shard.judge("e2", IMPRESSIONS, price_micros=9_000_001).amount_nanos == 9_000_000


# --- Rule 10: limits -----------------------------------------------------------------------------


def clicks(shard: World, count: int, start: int = 0, **changes: Any) -> list[tuple[str, int, int]]:
    """Clicks of as many insertions: (disposition, amount, free) each."""
    judged = [
        shard.judge(f"e{number}", impression_id=f"i{number}", **changes)
        for number in range(start, start + count)
    ]
    return [(each.disposition, each.amount_nanos, each.free_nanos) for each in judged]


def test_spend_is_the_lesser_of_limit_and_demand_to_the_nano() -> None:
    """0.70 USD a day: 0.30, 0.30, 0.10 of 0.30, then nothing. The next day is a new one."""
    shard = world(ad_group={"budget_micros": 700_000})
    assert clicks(shard, 5) == [
        ("charged", 300_000_000, 0),
        ("charged", 300_000_000, 0),
        ("charged", 100_000_000, 200_000_000),
        ("over_budget", 0, 300_000_000),
        ("over_budget", 0, 300_000_000),
    ]
    assert clicks(shard, 1, 5, event_time_ms=NOON + DAY) == [("charged", 300_000_000, 0)]
    assert shard.auditor.spend("ad_group_daily", "g1", TODAY) == 700_000_000
    assert shard.auditor.spend("ad_group_daily", "g1", date(2024, 3, 5)) == 300_000_000
    assert shard.auditor.spend("ad_group_lifetime", "g1", None) == 1_000_000_000
    assert shard.auditor.spend("campaign_daily", "c1", TODAY) == 700_000_000
    assert shard.auditor.spend("campaign_lifetime", "c1", None) == 1_000_000_000


def test_the_limit_is_named_where_it_cut_and_only_there() -> None:
    shard = world(ad_group={"budget_micros": 500_000})
    judged = [shard.judge(f"e{number}", impression_id=f"i{number}") for number in range(3)]
    assert [(each.limit, each.basis) for each in judged] == [
        ("", "cpc"),
        ("ad_group_daily", "cpc"),
        ("ad_group_daily", ""),
    ]


def test_a_charge_that_just_fits_is_not_cut() -> None:
    shard = world(ad_group={"budget_micros": 300_000})
    assert shard.judge("e1").limit == ""
    assert shard.judge("e2", impression_id="i2").limit == "ad_group_daily"


def test_a_late_event_counts_against_its_own_days_limit() -> None:
    shard = world(ad_group={"budget_micros": 300_000})
    assert clicks(shard, 1, 0, event_time_ms=NOON + DAY)[0][0] == "charged"
    late = shard.judge("late", event_time_ms=NOON, timestamp_ms=NOON + DAY, impression_id="late")
    assert (late.disposition, late.billing_day) == ("charged", TODAY)


def test_what_is_free_is_the_price_after_the_bid() -> None:
    """1 USD capped at the bid of 0.50, of which 0.20 was left."""
    shard = world(ad_group={"budget_micros": 700_000})
    assert clicks(shard, 3, price_micros=1_000_000) == [
        ("charged", 500_000_000, 0),
        ("charged", 200_000_000, 300_000_000),
        ("over_budget", 0, 500_000_000),
    ]


def test_an_event_for_nothing_is_charged_while_anything_remains() -> None:
    shard = world(ad_group={"budget_micros": 300_000})
    assert clicks(shard, 1, 0, price_micros=0) == [("charged", 0, 0)]
    assert clicks(shard, 1, 1) == [("charged", 300_000_000, 0)]
    assert clicks(shard, 1, 2, price_micros=0) == [("over_budget", 0, 0)]


def test_the_last_nano_is_charged() -> None:
    """1 micro a day is 1,000 nanos: 999 for one impression, 1 of 5 for the next."""
    shard = cpm_world(budget_micros=1)
    assert shard.judge("e1", IMPRESSIONS, price_micros=999).amount_nanos == 999
    last = shard.judge("e2", IMPRESSIONS, price_micros=5)
    assert (last.disposition, last.amount_nanos, last.free_nanos) == ("charged", 1, 4)
    assert shard.judge("e3", IMPRESSIONS, price_micros=5).disposition == "over_budget"


def test_a_lifetime_budget_is_for_all_days() -> None:
    end_ms = NOON + 30 * DAY
    shard = world(ad_group={"budget_type": "lifetime", "budget_micros": 400_000, "end_ms": end_ms})
    assert clicks(shard, 1) == [("charged", 300_000_000, 0)]
    second = shard.judge("e1", event_time_ms=NOON + DAY, impression_id="i1")
    assert (second.amount_nanos, second.limit) == (100_000_000, "ad_group_lifetime")
    third = shard.judge("e2", event_time_ms=NOON + 2 * DAY, impression_id="i2")
    assert (third.disposition, third.limit) == ("over_budget", "ad_group_lifetime")


def two_ad_groups(**campaign: Any) -> World:
    """g1 and g2 of c1, 10 USD a day each; one click of 0.30 USD is charged to g1."""
    shard = world(campaign)
    shard.ad_group(ad_group_id="g2")
    shard.pin(promoted_pin_id="p2", ad_group_id="g2")
    assert shard.judge("first").amount_nanos == 300_000_000
    return shard


SECOND_AD: dict[str, Any] = {
    "ad_group_id": "g2",
    "promoted_pin_id": "p2",
    "impression_id": "i2",
}


def test_a_campaigns_daily_limit_is_for_all_its_ad_groups_and_one_day() -> None:
    shard = two_ad_groups(daily_spend_limit_micros=400_000)
    today = shard.judge("e2", **SECOND_AD)
    assert (today.amount_nanos, today.limit) == (100_000_000, "campaign_daily")
    tomorrow = shard.judge("e3", **{**SECOND_AD, "impression_id": "i3"}, event_time_ms=NOON + DAY)
    assert (tomorrow.amount_nanos, tomorrow.limit) == (300_000_000, "")


def test_a_campaigns_lifetime_limit_is_for_all_its_ad_groups_and_days() -> None:
    shard = two_ad_groups(lifetime_spend_limit_micros=400_000)
    tomorrow = shard.judge("e2", **SECOND_AD, event_time_ms=NOON + DAY)
    assert (tomorrow.amount_nanos, tomorrow.limit) == (100_000_000, "campaign_lifetime")


def test_a_limit_of_zero_is_a_limit() -> None:
    verdict = world({"daily_spend_limit_micros": 0}).judge("e1")
    assert (verdict.disposition, verdict.limit) == ("over_budget", "campaign_daily")


@pytest.mark.parametrize(
    ("budget", "daily", "lifetime", "named"),
    [
        (1, 1, 1, "ad_group_daily"),
        (2, 1, 1, "campaign_daily"),
        (2, 2, 1, "campaign_lifetime"),
        (1, 2, 1, "ad_group_daily"),
        (2, None, 1, "campaign_lifetime"),
        (2, 1, None, "campaign_daily"),
    ],
)
def test_the_tightest_limit_is_named_and_the_first_of_equals(
    budget: int, daily: int | None, lifetime: int | None, named: str
) -> None:
    shard = world(
        {"daily_spend_limit_micros": daily, "lifetime_spend_limit_micros": lifetime},
        {"budget_micros": budget},
    )
    verdict = shard.judge("e1")
    assert (verdict.amount_nanos, verdict.limit) == (1_000, named)


def test_a_lifetime_budget_is_named_before_a_campaigns_equal_limits() -> None:
    shard = world(
        {"daily_spend_limit_micros": 5, "lifetime_spend_limit_micros": 5},
        {"budget_type": "lifetime", "budget_micros": 5, "end_ms": NOON + DAY},
    )
    assert shard.judge("e1").limit == "ad_group_lifetime"


def test_limits_are_those_in_force_when_the_event_is_judged() -> None:
    """The budget is raised to 0.60 at 13:00: an event of noon that is judged then has it."""
    one = ms("2024-03-04T13:00:00")
    shard = world(ad_group={"budget_micros": 300_000})
    shard.ad_group(budget_micros=600_000, effective_ms=one)
    assert clicks(shard, 2, 0, now_ms=one - 1)[1][0] == "over_budget"
    assert clicks(shard, 1, 2, now_ms=one) == [("charged", 300_000_000, 0)]
    assert clicks(shard, 1, 3, now_ms=one)[0][0] == "over_budget"


def test_a_campaign_limit_set_later_counts_what_was_spent_before() -> None:
    shard = two_ad_groups()
    shard.campaign(daily_spend_limit_micros=200_000, effective_ms=NOON)
    over = shard.judge("e2", **SECOND_AD)
    assert (over.disposition, over.limit) == ("over_budget", "campaign_daily")
    shard.campaign(effective_ms=NOON)
    assert shard.judge("e3", **SECOND_AD).disposition == "charged"


def test_spend_outlives_a_deletion() -> None:
    shard = world(ad_group={"budget_micros": 300_000})
    assert shard.judge("e1").disposition == "charged"
    shard.publish("ad_group:g1", None)
    shard.ad_group(budget_micros=300_000)
    assert shard.judge("e2", impression_id="i2").disposition == "over_budget"


def test_only_charged_events_accrue() -> None:
    shard = world()
    shard.judge("e1", IMPRESSIONS)
    shard.judge("e2", event_time_ms=MARCH_1 - 1)
    shard.judge("e3", ad_group_id="g9")
    assert shard.auditor.spend("campaign_lifetime", "c1", None) == 0
    assert shard.auditor.spend("ad_group_daily", "g1", TODAY) == 0


@pytest.mark.parametrize(("limit", "day"), [("budget", TODAY), ("campaign_daily", None)])
def test_a_bucket_that_cannot_be_is_the_callers_mistake(limit: str, day: date | None) -> None:
    with pytest.raises(ValueError, match=limit):
        world().auditor.spend(limit, "c1", day)


# --- Billing days --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "time", "day"),
    [
        (ABSENT, "2024-03-04T23:59:59.999", date(2024, 3, 4)),
        (ABSENT, "2024-03-05T00:00:00", date(2024, 3, 5)),
        # New York's 10 March 2024 has 23 hours: 05:00 UTC to before 04:00 UTC
        ("America/New_York", "2024-03-10T04:59:59.999", date(2024, 3, 9)),
        ("America/New_York", "2024-03-10T05:00:00", date(2024, 3, 10)),
        ("America/New_York", "2024-03-11T03:59:59.999", date(2024, 3, 10)),
        ("America/New_York", "2024-03-11T04:00:00", date(2024, 3, 11)),
        # its 3 November 2024 has 25: 04:00 UTC to before 05:00 UTC
        ("America/New_York", "2024-11-03T04:00:00", date(2024, 11, 3)),
        ("America/New_York", "2024-11-04T04:59:59.999", date(2024, 11, 3)),
        # half and three quarter hours, and the far ends of the earth
        ("Asia/Kolkata", "2024-03-04T18:29:59.999", date(2024, 3, 4)),
        ("Asia/Kolkata", "2024-03-04T18:30:00", date(2024, 3, 5)),
        ("Asia/Kathmandu", "2024-03-04T18:15:00", date(2024, 3, 5)),
        ("Pacific/Kiritimati", "2024-03-04T10:00:00", date(2024, 3, 5)),
        ("Pacific/Pago_Pago", "2024-03-04T10:59:59.999", date(2024, 3, 3)),
    ],
)
def test_a_billing_day_is_the_calendar_day_in_the_accounts_zone(
    zone: str, time: str, day: date
) -> None:
    shard = world(account={"time_zone": zone})
    assert shard.judge("e1", event_time_ms=ms(time)).billing_day == day


def test_a_change_of_zone_takes_effect_at_the_accounts_next_day() -> None:
    """Noon UTC of 4 March is 01:00 of 5 March in Auckland, midnight UTC of the 5th 13:00."""
    shard = world()
    shard.account(time_zone="Pacific/Auckland", effective_ms=NOON)
    hour_ms = 3_600_000
    days = [
        shard.judge(f"e{hours}", event_time_ms=NOON + hours * hour_ms, impression_id=f"i{hours}")
        for hours in (0, 11, 12, 22, 23)
    ]
    assert [verdict.billing_day.day for verdict in days] == [4, 4, 5, 5, 6]


# --- CPM blocks ----------------------------------------------------------------------------------


def test_impressions_are_posted_in_blocks_of_a_thousand() -> None:
    """Prices of 1, 2, ... 2,500 micros CPM: sums of 1..1000, 1001..2000 and 2001..2500."""
    shard = cpm_world()
    for number in range(1, 2501):
        shard.judge(f"e{number}", IMPRESSIONS, price_micros=number)
    assert shard.auditor.blocks("g1", TODAY) == [
        (1000, 500_500),
        (1000, 1_500_500),
        (500, 1_125_250),
    ]
    assert shard.auditor.blocks("g1", date(2024, 3, 5)) == []
    assert shard.auditor.blocks("g2", TODAY) == []


def test_a_day_of_whole_blocks_has_no_incomplete_one() -> None:
    shard = cpm_world()
    for number in range(1000):
        shard.judge(f"e{number}", IMPRESSIONS, price_micros=2)
    assert shard.auditor.blocks("g1", TODAY) == [(1000, 2_000)]


def test_blocks_hold_charged_impressions_only_each_days_by_itself() -> None:
    """1 micro a day is 1,000 nanos: 600 and 400 of 600 are charged, the third is over budget."""
    shard = cpm_world(budget_micros=1)
    for number in range(3):
        shard.judge(f"e{number}", IMPRESSIONS, price_micros=600)
    shard.judge("click", CLICKS)
    shard.judge("next", IMPRESSIONS, price_micros=7, event_time_ms=NOON + DAY)
    assert shard.auditor.blocks("g1", TODAY) == [(2, 1_000)]
    assert shard.auditor.blocks("g1", date(2024, 3, 5)) == [(1, 7)]


def test_clicks_are_in_no_block() -> None:
    shard = world()
    assert shard.judge("e1").disposition == "charged"
    assert shard.auditor.blocks("g1", TODAY) == []


# --- The catalog: what is malformed --------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        *("", "account", "account:", ":a1", "Account:a1", "pin:p1", "account:" + "a" * 257),
        *("day:2024-03-01", "FX:2024-03-01"),
        *("fx:", "fx:20240301", "fx:2024-3-1", "fx:2024-02-30", "fx:2024-03-01 "),
    ],
)
def test_a_bad_key_is_malformed_even_for_a_deletion(key: str) -> None:
    entity, _, entity_id = key.partition(":")
    body: dict[str, Any] = {**ACCOUNT, f"{entity.lower()}_id": entity_id}
    if entity in ("fx", "day", "FX"):
        body = {f"{entity}_{part}": entity_id for part in ("day", "id")} | {"usd_per_unit": {}}
    assert World().publish(key, body) == "malformed"
    assert World().publish(key, None) == "malformed"


@pytest.mark.parametrize("placement", ["all", "browse", "search"])
def test_where_a_campaign_is_placed_is_the_auctions_business(placement: str) -> None:
    assert world({"placement": placement}).judge("e1", placement="browse").disposition == "charged"


def test_an_ad_of_one_character_ids_is_an_ad_like_others() -> None:
    shard = World()
    shard.account(account_id="a")
    shard.campaign(campaign_id="c", account_id="a")
    shard.ad_group(ad_group_id="g", campaign_id="c")
    shard.pin(promoted_pin_id="p", ad_group_id="g")
    verdict = shard.judge("e", campaign_id="c", ad_group_id="g", promoted_pin_id="p")
    assert verdict.disposition == "charged"


def test_an_id_may_hold_a_colon_and_256_characters() -> None:
    assert World().account(account_id="a") is None
    assert World().account(account_id="a:1") is None
    assert World().account(account_id="é" * 256) is None


def test_deleting_what_is_not_there_is_no_mistake() -> None:
    empty = World()
    for key in ("account:a1", "campaign:c1", "ad_group:g1", "promoted_pin:p1", "fx:2024-03-01"):
        assert empty.publish(key, None) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"[]",
        b'"account"',
        b"{",
        b"\xff",
        b'{"account_id": "a1", "country": "US", "currency": "USD", "x": NaN}',
        b'{"account_id": "a1", "country": "US", "currency": "USD", "country": "US"}',
        b'{"account_id": "a2", "country": "US", "currency": "USD"}',
    ],
)
def test_an_entity_is_one_json_object_of_its_keys_id(value: bytes) -> None:
    assert World().publish("account:a1", value) == "malformed"


BAD_FIELDS: list[tuple[str, str, list[Any]]] = [
    ("account", "account_id", [ABSENT, None, 1]),
    ("account", "country", [ABSENT, None, "DE", "us", "", 1]),
    ("account", "currency", [ABSENT, None, "JPY", "usd", "", 1]),
    ("account", "time_zone", [1, ["UTC"]]),
    ("account", "effective_ms", [-1, 1.0, True, "1", 2**63]),
    ("account", "changed_by", [1, {}, "\ud800"]),
    ("campaign", "account_id", [ABSENT, None, "", 1, "a" * 257]),
    ("campaign", "objective", [ABSENT, None, "Traffic", "", 1]),
    ("campaign", "daily_spend_limit_micros", [1.0, True, "1", [1]]),
    ("campaign", "lifetime_spend_limit_micros", [1.0, False, "1", {}]),
    ("campaign", "placement", ["home", 1]),
    ("campaign", "status", ["deleted", True]),
    ("ad_group", "campaign_id", [ABSENT, None, "", 1]),
    ("ad_group", "budget_type", [ABSENT, None, "weekly", 1]),
    ("ad_group", "budget_micros", [ABSENT, None, 1.0, True, "1"]),
    ("ad_group", "bid_micros", [ABSENT, None, 5e5, True, "1"]),
    ("ad_group", "bid_strategy", ["cpc", 1]),
    ("ad_group", "keyword_bids_micros", [[], "x", 1, {"k": 1.0}, {"k": None}, {"k": True}]),
    ("ad_group", "start_ms", [1.0, True, "1", 2**63, -(2**63) - 1]),
    ("ad_group", "end_ms", [1.0, True, "1", 2**63]),
    ("ad_group", "pacing", ["fast", 1]),
    ("ad_group", "status", ["pending", 1]),
    ("pin", "ad_group_id", [ABSENT, None, "", 1]),
    ("pin", "status", ["approved", 1]),
    ("pin", "review", ["active", 1]),
    ("pin", "destination_url", [1, []]),
]


@pytest.mark.parametrize(
    ("entity", "field", "value"),
    [(entity, field, value) for entity, field, values in BAD_FIELDS for value in values],
)
def test_a_wrong_field_is_malformed(entity: str, field: str, value: object) -> None:
    shard = world()
    key = {"account": "account:a1", "campaign": "campaign:c1", "ad_group": "ad_group:g1"}
    body: Any = {"account": ACCOUNT, "campaign": CAMPAIGN, "ad_group": AD_GROUP, "pin": PIN}[entity]
    refused = shard.publish(key.get(entity, "promoted_pin:p1"), changed(body, {field: value}))
    assert refused == "malformed"
    assert shard.judge("e1").disposition == "charged"


def test_a_keyword_given_two_bids_is_malformed() -> None:
    value = json.dumps({**AD_GROUP, "keyword_bids_micros": "?"})
    value = value.replace('"?"', '{"k": 500000, "k": 600000}')
    assert world().publish("ad_group:g1", value.encode()) == "malformed"


def test_null_for_an_optional_field_counts_as_absent_and_extra_fields_are_ignored() -> None:
    nothing: dict[str, Any] = {"effective_ms": None, "changed_by": None, "name": 1, "ids": [None]}
    limits = {"daily_spend_limit_micros": None, "lifetime_spend_limit_micros": None}
    shard = world(
        account={**nothing, "time_zone": None},
        campaign={**nothing, **limits, "placement": None, "status": None},
        ad_group={
            **nothing,
            "bid_strategy": None,
            "keyword_bids_micros": None,
            "end_ms": None,
            "pacing": None,
            "status": None,
        },
        pin={**nothing, "status": None, "destination_url": None},
    )
    assert shard.judge("e1").disposition == "charged"


def test_every_optional_field_may_be_given() -> None:
    common: dict[str, Any] = {"effective_ms": 0, "changed_by": "someone"}
    shard = world(
        account={**common, "time_zone": "Europe/Dublin", "country": "IE", "currency": "EUR"},
        campaign={
            **common,
            "daily_spend_limit_micros": 10**15,
            "lifetime_spend_limit_micros": 0,
            "placement": "search",
            "status": "active",
            "objective": "app_install",
        },
        ad_group={
            **common,
            "budget_micros": 10**15,
            "bid_micros": 10**15,
            "bid_strategy": "target_cpi",
            "keyword_bids_micros": {"": 110_000, "k": 10**15},
            "end_ms": NOON,
            "pacing": "even",
            "status": "active",
        },
        pin={**common, "status": "active", "destination_url": "https://example.com"},
    )
    assert shard.judge("e1", event_time_ms=NOON - 1).limit == "campaign_lifetime"


@pytest.mark.parametrize(
    "rate", ["0", "0.00", "-1", "+1", "1e3", "NaN", "Infinity", "", " 1", "1_0", ".5", "5.", 1, 1.5]
)
def test_a_rate_is_a_decimal_string_greater_than_zero(rate: object) -> None:
    body = {"fx_day": "2024-03-01", "usd_per_unit": {"GBP": rate}}
    assert World().publish("fx:2024-03-01", body) == "malformed"


@pytest.mark.parametrize(
    "body",
    [
        {"fx_day": "2024-03-02", "usd_per_unit": {}},
        {"usd_per_unit": {}},
        {"fx_day": "2024-03-01"},
        {"fx_day": "2024-03-01", "usd_per_unit": ["1"]},
        {"fx_day": "2024-03-01", "usd_per_unit": {}, "effective_ms": -1},
    ],
)
def test_an_fx_entity_names_its_day_and_its_rates(body: object) -> None:
    assert World().publish("fx:2024-03-01", body) == "malformed"


# --- The catalog: refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "amount",
    ["0", "-1", "1000000000000001", str(2**63), "1" + "0" * 5000],
    ids=["0", "-1", "10**15 + 1", "2**63", "10**5000"],
)
@pytest.mark.parametrize("field", ["budget_micros", "bid_micros", "keyword"])
def test_budgets_and_bids_are_more_than_zero_and_bounded(field: str, amount: str) -> None:
    change = {field: "?"} if field != "keyword" else {"keyword_bids_micros": {"k": "?"}}
    value = json.dumps({**AD_GROUP, **change}).replace('"?"', amount).encode()
    assert world().publish("ad_group:g1", value) == "amount_out_of_range"


@pytest.mark.parametrize("amount", [-1, 10**15 + 1])
@pytest.mark.parametrize("field", ["daily_spend_limit_micros", "lifetime_spend_limit_micros"])
def test_campaign_limits_are_bounded(field: str, amount: int) -> None:
    assert world().campaign(**{field: amount}) == "amount_out_of_range"


def test_a_currency_is_its_countrys() -> None:
    pairs = ["US USD", "CA CAD", "GB GBP", "IE EUR", "AU AUD", "NZ NZD"]
    countries = {pair[:2]: pair[3:] for pair in pairs}
    for country in countries:
        for currency in countries.values():
            expected = None if currency == countries[country] else "currency_mismatch"
            assert World().account(country=country, currency=currency) == expected


def test_currency_and_country_are_fixed_even_over_a_deletion() -> None:
    shard = world()
    assert shard.account(country="GB", currency="GBP") == "currency_changed"
    shard.publish("account:a1", None)
    assert shard.account(country="GB", currency="GBP") == "currency_changed"
    assert shard.account() is None


@pytest.mark.parametrize(
    "zone", ["", "Mars/Base", "utc", "America", "../UTC", "/UTC", "U\0TC", "x" * 300, "localtime"]
)
def test_a_zone_has_an_iana_name(zone: str) -> None:
    assert World().account(time_zone=zone) == "unknown_time_zone"


def test_a_child_before_its_parent_is_refused_and_not_kept() -> None:
    empty = World()
    assert empty.campaign() == "missing_parent"
    assert empty.account() is None
    assert empty.ad_group() == "missing_parent"
    assert empty.campaign() is None
    assert empty.pin() == "missing_parent"
    assert empty.ad_group() is None
    assert empty.judge("e1").disposition == "unknown"
    assert empty.pin() is None
    assert empty.judge("e1").disposition == "charged"


def test_a_deleted_parent_is_missing() -> None:
    shard = world()
    for key in ("ad_group:g1", "campaign:c1", "account:a1"):
        shard.publish(key, None)
    assert [shard.pin(), shard.ad_group(), shard.campaign()] == ["missing_parent"] * 3


def test_parents_are_fixed_even_over_a_deletion() -> None:
    shard = world()
    shard.account(account_id="a2")
    shard.campaign(campaign_id="c2")
    shard.ad_group(ad_group_id="g2")
    for _ in range(2):
        assert shard.campaign(account_id="a2") == "parent_changed"
        assert shard.ad_group(campaign_id="c2") == "parent_changed"
        assert shard.pin(ad_group_id="g2") == "parent_changed"
        for key in ("campaign:c1", "ad_group:g1", "promoted_pin:p1"):
            shard.publish(key, None)
    assert [shard.campaign(), shard.ad_group(), shard.pin()] == [None, None, None]


def test_a_budget_type_is_fixed_even_over_a_deletion() -> None:
    shard = world()
    for _ in range(2):
        assert shard.ad_group(budget_type="lifetime", end_ms=NOON) == "budget_type_changed"
        shard.publish("ad_group:g1", None)
    assert shard.ad_group() is None


def test_a_refused_entity_fixes_nothing() -> None:
    """Each is refused for another reason, then accepted with another parent, type or currency."""
    shard = world()
    shard.account(account_id="a2", country="GB", currency="GBP", time_zone="?")
    assert shard.account(account_id="a2") is None
    shard.campaign(campaign_id="c2", daily_spend_limit_micros=-1)
    assert shard.campaign(campaign_id="c2", account_id="a2") is None
    assert shard.ad_group(ad_group_id="g2", bid_micros=1) == "bid_too_low"
    lifetime = {"budget_type": "lifetime", "end_ms": NOON + DAY}
    assert shard.ad_group(ad_group_id="g2", campaign_id="c2", **lifetime) is None


@pytest.mark.parametrize("objective", BILLABLE)
def test_target_cpi_is_for_app_install_only(objective: str) -> None:
    shard = world({"objective": objective}, {"bid_micros": 9_000_000})
    refused = shard.ad_group(bid_strategy="target_cpi", bid_micros=9_000_000)
    assert refused == (None if objective == "app_install" else "strategy_not_allowed")


def test_a_lifetime_budget_needs_an_end() -> None:
    assert world().ad_group(ad_group_id="g2", budget_type="lifetime") == "missing_end"


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "reason"),
    [
        (5, 5, "bad_dates"),
        (5, 4, "bad_dates"),
        (5, 6, None),
        (ABSENT, 0, None),
        (-(2**63), 2**63 - 1, None),
    ],
)
def test_an_end_is_after_its_start(start_ms: int, end_ms: int, reason: str | None) -> None:
    assert world().ad_group(start_ms=start_ms, end_ms=end_ms) == reason


def test_the_first_check_that_fails_gives_the_reason() -> None:
    """One ad group with everything wrong, put right one thing at a time."""
    shard = world()
    shard.campaign(campaign_id="c2")
    body: dict[str, Any] = {
        "pacing": "fast",
        "budget_micros": 0,
        "campaign_id": "c9",
        "budget_type": "lifetime",
        "bid_strategy": "target_cpi",
        "start_ms": 9,
        "end_ms": 1,
        "bid_micros": 1,
    }
    steps: list[tuple[str | None, dict[str, Any]]] = [
        ("malformed", {"pacing": "even"}),
        ("amount_out_of_range", {"budget_micros": 1}),
        ("missing_parent", {"campaign_id": "c2"}),
        ("parent_changed", {"campaign_id": "c1"}),
        ("budget_type_changed", {"budget_type": "daily"}),
        ("strategy_not_allowed", {"bid_strategy": "max_bid"}),
        ("bad_dates", {"end_ms": 10}),
        ("bid_too_low", {"bid_micros": 100_000}),
        (None, {}),
    ]
    for reason, correction in steps:
        assert shard.ad_group(**body) == reason
        body.update(correction)


def test_the_order_of_the_other_checks() -> None:
    shard = world()
    zone: dict[str, Any] = {"country": "GB", "currency": "USD", "time_zone": "?"}
    assert shard.account(**zone) == "currency_mismatch"
    assert shard.account(**{**zone, "currency": "GBP"}) == "unknown_time_zone"
    assert shard.campaign(account_id="a9", daily_spend_limit_micros=-1) == "amount_out_of_range"
    late: dict[str, Any] = {"ad_group_id": "g2", "budget_type": "lifetime", "bid_micros": 1}
    assert shard.ad_group(**late, bid_strategy="target_cpi") == "strategy_not_allowed"
    assert shard.ad_group(**late) == "missing_end"


def test_what_is_refused_leaves_the_last_valid_one_in_force() -> None:
    shard = world()
    assert shard.ad_group(bid_micros=99_999, status="paused", effective_ms=NOON) == "bid_too_low"
    assert shard.judge("e1").amount_nanos == 300_000_000


# --- Minimum bids --------------------------------------------------------------------------------

COUNTRIES = {"USD": "US", "CAD": "CA", "GBP": "GB", "EUR": "IE", "AUD": "AU", "NZD": "NZ"}

MINIMUM_BIDS = {  # the contract's table: CPC, CPE, CPM, autoplay-video CPM; no fx read: peg at 2.00
    "USD": (100_000, 100_000, 2_000_000, 6_000_000),
    "GBP": (80_000, 80_000, 2_000_000, 4_630_000),
    "CAD": (150_000, 150_000, 2_000_000, 8_150_000),
    "EUR": (110_000, 110_000, 2_000_000, 5_380_000),
    "AUD": (150_000, 150_000, 2_000_000, 8_070_000),
    "NZD": (160_000, 160_000, 2_000_000, 8_670_000),
}


@pytest.mark.parametrize("currency", MINIMUM_BIDS)
@pytest.mark.parametrize(
    ("objective", "column"),
    [
        ("traffic", 0),
        ("app_install", 0),
        ("engagement", 1),
        ("awareness", 2),
        ("video_awareness", 3),
    ],
)
def test_a_bid_is_at_least_the_minimum(currency: str, objective: str, column: int) -> None:
    minimum = MINIMUM_BIDS[currency][column]
    shard = World()
    shard.account(country=COUNTRIES[currency], currency=currency)
    shard.campaign(objective=objective)
    assert shard.ad_group(bid_micros=minimum - 1) == "bid_too_low"
    assert shard.ad_group(bid_micros=minimum) is None
    high = 10 * minimum
    keywords = {"dear": high, "cheap": minimum - 1}
    assert shard.ad_group(bid_micros=high, keyword_bids_micros=keywords) == "bid_too_low"
    keywords["cheap"] = minimum
    assert shard.ad_group(bid_micros=high, keyword_bids_micros=keywords) is None
    if objective == "app_install":
        assert shard.ad_group(bid_strategy="target_cpi", bid_micros=minimum - 1) == "bid_too_low"
        assert shard.ad_group(bid_strategy="target_cpi", bid_micros=minimum) is None


def pegged_world(currency: str = "GBP") -> World:
    shard = World()
    shard.account(country=COUNTRIES[currency], currency=currency)
    shard.campaign(objective="awareness")
    return shard


def minimum_is(shard: World, minimum: int, **changes: Any) -> bool:
    """Whether just `minimum` is accepted, and a micro less refused."""
    low = shard.ad_group(bid_micros=minimum - 1, **changes)
    return low == "bid_too_low" and shard.ad_group(bid_micros=minimum, **changes) is None


@pytest.mark.parametrize(
    ("rate", "minimum"),
    [
        ("1.25", 1_600_000),
        ("1.27", 1_574_804),  # 1,574,803.14...
        ("3", 666_667),
        ("0.5", 4_000_000),
        ("1.000000000000000000000000000000000000001", 2_000_000),
        ("0.999999999999999999999999999999999999999", 2_000_001),
    ],
)
def test_a_pegged_minimum_is_two_dollars_rounded_up(rate: str, minimum: int) -> None:
    shard = pegged_world()
    assert shard.fx("2024-03-01", GBP=rate, EUR="9") is None
    assert minimum_is(shard, minimum)


def test_the_peg_is_of_the_latest_day_that_the_version_has_reached() -> None:
    """Rates of 1, 3 and 5 March, read out of order; each version by its effective_ms."""
    shard = pegged_world()
    shard.fx("2024-03-05", GBP="4")
    shard.fx("2024-03-03", GBP="2")
    shard.fx("2024-03-01", GBP="1")
    for time, minimum in [
        ("2024-03-01T00:00:00", 2_000_000),
        ("2024-03-02T23:59:59", 2_000_000),
        ("2024-03-03T00:00:00", 1_000_000),
        ("2024-03-04T23:59:59", 1_000_000),
        ("2024-03-05T00:00:00", 500_000),
        ("2054-01-01T00:00:00", 500_000),
    ]:
        assert minimum_is(shard, minimum, effective_ms=ms(time)), time


def test_before_all_days_the_peg_is_of_the_one_read_last() -> None:
    """Whatever its day; a rate that is published again is read again."""
    before: dict[str, Any] = {"effective_ms": ms("2024-02-29T23:59:59")}
    shard = pegged_world()
    shard.fx("2024-03-05", GBP="4")
    shard.fx("2024-03-01", GBP="1")
    shard.fx("2024-03-03", GBP="2")
    assert minimum_is(shard, 1_000_000, **before)
    shard.fx("2024-03-05", GBP="5")
    assert minimum_is(shard, 400_000, **before)


def test_without_a_rate_the_peg_is_two_units() -> None:
    """No fx at all, none with the currency, a refused or a deleted one are all none."""
    shard = pegged_world()
    assert minimum_is(shard, 2_000_000)
    shard.fx("2024-03-01", EUR="1.1")
    assert minimum_is(shard, 2_000_000)
    assert shard.fx("2024-03-01", GBP="0") == "malformed"
    assert minimum_is(shard, 2_000_000)
    shard.fx("2024-02-01", GBP="1.25")
    assert minimum_is(shard, 1_600_000)
    shard.publish("fx:2024-02-01", None)
    assert minimum_is(shard, 2_000_000)


def test_a_dollar_account_is_not_pegged_and_no_fixed_minimum_moves() -> None:
    shard = pegged_world("USD")
    shard.fx("2024-03-01", USD="0.5", GBP="2")
    assert minimum_is(shard, 2_000_000)
    video = pegged_world("GBP")
    video.fx("2024-03-01", GBP="2")
    video.campaign(objective="video_awareness")
    assert minimum_is(video, 4_630_000)


def test_a_far_effective_time_does_not_break_the_peg() -> None:
    shard = pegged_world()
    shard.fx("2024-03-01", GBP="2")
    assert minimum_is(shard, 1_000_000, effective_ms=2**63 - 1)


def test_the_minimum_is_for_the_campaigns_objective_when_the_version_takes_effect() -> None:
    shard = world()
    shard.campaign(objective="awareness", effective_ms=NOON)
    assert minimum_is(shard, 100_000, effective_ms=NOON - 1)
    assert minimum_is(shard, 2_000_000, effective_ms=NOON)
