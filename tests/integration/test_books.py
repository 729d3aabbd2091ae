"""The books of three days: closed, adjusted, credited, stated, and reconciled.

One story, told once: London, whose clocks change on the first of its days, and Los Angeles, over
the end of a month, with late events, credits, and restarts in the middle. What it must come to is
computed here from the prices alone.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.contract.log import LogRecord
from pipeline.contract.vocabulary import JOURNAL
from pipeline.reporting.audit import Audit, audit_journal
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.reconcile import reconcile
from pipeline.streams.log_reader import KafkaLogReader
from tests.integration.product import CATALOG, Ad, Message, Product, at, entities_of, until

CREATED_MS = at("2026-03-01")
CENT = 10_000_000
LONDON, LOS_ANGELES = "london", "los-angeles"


@dataclass
class Story:
    """The product, its ads, and what was seen on the way."""

    product: Product
    clicks: Ad
    """London, CPC."""
    blocks: Ad
    """London, CPM."""
    saves: Ad
    """Los Angeles, CPE."""
    closed_29th: list[Any] = field(default_factory=list)
    said: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What commands said, by a name."""
    march: str = ""
    refused_early: str = ""


def publish_ads(product: Product) -> Story:
    london = {"account_id": LONDON, "country": "GB", "currency": "GBP"}
    london["time_zone"] = "Europe/London"
    west = {"account_id": LOS_ANGELES, "time_zone": "America/Los_Angeles"}
    clicks, first = entities_of("clicks", "traffic", account=london)
    blocks, second = entities_of("blocks", "awareness", account=london)
    saves, third = entities_of("saves", "engagement", account=west)
    # Each once: a second record of an account would let compaction take the first, and with it
    # the place before its campaigns.
    product.publish_catalog(*first, *second[1:], *third, timestamp_ms=CREATED_MS)
    return Story(product, clicks, blocks, saves)


def close_day(story: Story, day: str) -> None:
    done = story.product.run("close-day", day)
    assert done.returncode == 0, done.stderr
    story.product.assert_reconciled()


def rows_of_day(story: Story, day: str) -> list[Any]:
    return [
        story.product.query(
            f"SELECT * FROM {table} WHERE {column} = {{d:Date}} ORDER BY ALL", d=day
        )
        for table, column in (
            ("billing.day_closes", "billing_day"),
            ("billing.charges", "posting_day"),
            ("billing.events", "posting_day"),
            ("billing.credits", "posting_day"),
            ("reporting.daily", "billing_day"),
        )
    ]


def credit(story: Story, ids: list[str], *more: str) -> dict[str, Any]:
    """`pipeline credit` for these events, as JSON."""
    path = story.product.data_dir / "ids.txt"
    path.write_text("\n".join(ids))
    arguments = ["--file", str(path), "--reason", "invalid traffic", "--by", "ana", "--json"]
    done = story.product.run("credit", *arguments, *more)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def await_credits(story: Story, count: int) -> None:
    def there() -> bool:
        [row] = story.product.query("SELECT count() AS n FROM billing.credits")
        return bool(row["n"] >= count)

    until(there, f"{count} rows in billing.credits")


def day_29(story: Story) -> None:
    clicks, blocks, saves = story.clicks, story.blocks, story.saves
    noon_ms = at("2026-03-29T12:00")
    story.product.publish(
        clicks.click("c-last-of-28th", at("2026-03-29T00:00") - 1, price_micros=100_001),
        clicks.click("c-first-of-29th", at("2026-03-29T00:00"), price_micros=100_003),
        *(
            blocks.impression(f"i-{n}", noon_ms, price_micros=5_000_001 + 7 * n)
            for n in range(1_200)
        ),
        clicks.click("c-29th", noon_ms, price_micros=333_333),
        saves.engagement("save", "s-29th", noon_ms, price_micros=123_457),
        clicks.click("c-last-of-29th", at("2026-03-29T23:00") - 1, price_micros=100_007),
        clicks.click("c-first-of-30th", at("2026-03-29T23:00"), price_micros=100_009),
    )
    story.product.settle()
    close_day(story, "2026-03-29")
    story.closed_29th = rows_of_day(story, "2026-03-29")


def day_30(story: Story) -> None:
    clicks, blocks, saves = story.clicks, story.blocks, story.saves
    noon_ms, late_ms = at("2026-03-30T12:00"), at("2026-03-29T12:00")
    story.product.publish(
        clicks.click("c-late", late_ms, price_micros=222_223, record_ms=noon_ms),
        blocks.impression("i-late", late_ms, price_micros=4_000_003, record_ms=noon_ms),
        clicks.click("c-30th", noon_ms, price_micros=444_449),
        saves.engagement("save", "s-30th", noon_ms, price_micros=234_567),
    )
    story.product.settle()
    asked = ["c-29th", "i-7", "c-30th", "nobody", "c-29th"]
    story.said["dry run"] = credit(story, asked)
    story.said["posted"] = credit(story, asked, "--post")
    await_credits(story, 3)
    story.product.end(signal.SIGKILL)
    story.product.close()
    story.product.start()
    story.said["again"] = credit(story, asked, "--post")
    # Straight onto the topic, past the command: a resend, and more than was charged.
    [resent] = [
        record for record in story.product.kafka.read(CATALOG) if record.key == b"credit:c-29th"
    ]
    forged = json.loads(resent.value) | {
        "event_id": "c-late",
        "charged_day": "2026-03-30",
        "amount_nanos": 222_223_001,
    }
    elsewhere = forged | {"event_id": "c-first-of-30th", "charged_day": "2026-03-28"}
    story.product.kafka.publish(
        [
            Message(CATALOG, resent.value, noon_ms, b"credit:c-29th"),
            Message(CATALOG, forged, noon_ms, b"credit:c-late"),
            Message(CATALOG, elsewhere, noon_ms, b"credit:c-first-of-30th"),
        ]
    )
    await_credits(story, 5)
    close_day(story, "2026-03-30")


def day_31(story: Story) -> None:
    noon_ms = at("2026-03-31T12:00")
    story.product.publish(
        story.clicks.click("c-31st", noon_ms, price_micros=555_557),
        story.saves.engagement("save", "s-31st", noon_ms, price_micros=345_679),
    )
    story.product.settle()
    story.refused_early = story.product.run(*statement_of(LONDON, "2026-03")).stderr
    close_day(story, "2026-03-31")
    story.march = story.product.run(*statement_of(LONDON, "2026-03")).stdout


def april(story: Story) -> None:
    first_ms = at("2026-04-01T12:00")
    story.product.publish(
        story.clicks.click("c-late-31st", at("2026-03-31T13:00"), record_ms=first_ms),
        story.clicks.click("c-april", first_ms, price_micros=666_667),
    )
    story.product.settle()
    credit(story, ["c-31st"], "--post")
    await_credits(story, 6)
    close_day(story, "2026-04-30")


def statement_of(account: str, month: str, form: str = "json") -> list[str]:
    return ["statement", "--account", account, "--month", month, "--format", form]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with Product(tmp_path_factory.mktemp("books") / "data") as product:
        told = publish_ads(product)
        day_29(told)
        day_30(told)
        day_31(told)
        april(told)
        yield told


# -- what it must come to ---------------------------------------------------------------------

CREDITED = {"c-29th": 333_333_000, "i-7": 5_000_050, "c-30th": 444_449_000}
CLICKS_OF_MARCH = 1_000 * (
    100_001 + 100_003 + 333_333 + 100_007 + 100_009 + 222_223 + 444_449 + 555_557
)
BLOCKS_OF_MARCH = sum(5_000_001 + 7 * n for n in range(1_200)) + 4_000_003
NET_CLICKS = CLICKS_OF_MARCH - CREDITED["c-29th"] - CREDITED["c-30th"]
NET_BLOCKS = BLOCKS_OF_MARCH - CREDITED["i-7"]


def test_the_days_of_london_have_the_hours_that_its_clocks_give_them(story: Story) -> None:
    rows = story.product.judged(story.clicks, "event_id", "billing_day")
    days = {event_id: day for event_id, day in rows if "st-of" in event_id or "rst-of" in event_id}
    assert days == {
        "c-last-of-28th": "2026-03-28",
        "c-first-of-29th": "2026-03-29",
        "c-last-of-29th": "2026-03-29",
        "c-first-of-30th": "2026-03-30",
    }


def test_events_and_credits_are_the_charges_are_the_days_to_the_nano(story: Story) -> None:
    rows = story.product.query(
        "SELECT account_id, day, sum(e) AS events, sum(c) AS credits, sum(p) AS charges, "
        "sum(d) AS daily, sum(x) AS closes FROM ("
        "SELECT account_id, posting_day AS day, amount_nanos AS e, 0 AS c, 0 AS p, 0 AS d, 0 AS x "
        "FROM billing.events WHERE account_id != '' UNION ALL "
        "SELECT account_id, posting_day, 0, amount_nanos, 0, 0, 0 FROM billing.credits UNION ALL "
        "SELECT account_id, posting_day, 0, 0, amount_nanos, 0, 0 FROM billing.charges UNION ALL "
        "SELECT account_id, billing_day, 0, 0, 0, spend_nanos, 0 FROM reporting.daily UNION ALL "
        "SELECT account_id, billing_day, 0, 0, 0, 0, amount_nanos FROM billing.day_closes) "
        "GROUP BY account_id, day ORDER BY account_id, day"
    )
    assert len(rows) == 34 + 33  # London from the 28th, Los Angeles from the 29th, to 30 April
    for row in rows:
        assert row["events"] + row["credits"] == row["charges"] == row["daily"] == row["closes"]
    of_29th = [r for r in rows if r["account_id"] == LONDON and r["day"] == "2026-03-29"]
    assert of_29th[0]["charges"] == 1_000 * (100_003 + 333_333 + 100_007) + sum(
        5_000_001 + 7 * n for n in range(1_200)
    )


def test_a_closed_day_is_what_it_was_after_all_that_came_later(story: Story) -> None:
    assert rows_of_day(story, "2026-03-29") == story.closed_29th


def test_a_credit_is_shown_first_and_posted_once(story: Story) -> None:
    dry, posted, again = (story.said[name] for name in ("dry run", "posted", "again"))
    amounts = {one["event_id"]: one["amount_nanos"] for one in dry["credits"]}
    assert amounts == CREDITED
    assert (dry["posted"], posted["posted"]) == (False, True)
    assert posted["credits"] == dry["credits"]
    assert dry["not_charged"] == {"nobody": "was not charged, or is not in the tables"}
    assert again["credits"] == []
    assert sorted(again["credited_before"]) == sorted(CREDITED)


def test_a_credit_is_a_negative_charge_linked_to_its_event(story: Story) -> None:
    rows = story.product.query(
        "SELECT event_id, basis, quantity, amount_nanos, posting_day, billing_day, "
        "toUInt8(is_adjustment) AS adjusts, adjusts_day FROM billing.charges "
        "WHERE amount_nanos < 0 ORDER BY posting_day, event_id"
    )
    day_29, day_30, day_31 = "2026-03-29", "2026-03-30", "2026-03-31"
    assert [tuple(row.values()) for row in rows] == [
        ("c-29th", "cpc", -1, -CREDITED["c-29th"], day_30, day_29, 1, day_29),
        ("c-30th", "cpc", -1, -CREDITED["c-30th"], day_30, day_30, 0, "1970-01-01"),
        ("i-7", "cpm", -1, -CREDITED["i-7"], day_30, day_29, 1, day_29),
        ("c-31st", "cpc", -1, -555_557_000, "2026-04-01", day_31, 1, day_31),
    ]


def test_a_credit_that_the_books_do_not_bear_out_is_never_posted(story: Story) -> None:
    rows = story.product.query(
        "SELECT * FROM billing.credits WHERE refused != '' ORDER BY event_id"
    )
    assert [(row["event_id"], row["amount_nanos"], row["charge_id"]) for row in rows] == [
        ("c-first-of-30th", 0, ""),
        ("c-late", 0, ""),
    ]
    assert rows[0]["refused"] == "no charge of this event is in the books of 2026-03-28"
    assert rows[1]["refused"] == "amount_nanos is 222223000, not 222223001"


def test_adjustments_are_seen_beside_the_day_that_they_belong_to(story: Story) -> None:
    rows = story.product.query(
        "SELECT sum(spend_nanos) AS spend, sum(for_earlier_days_nanos) AS earlier, "
        "sum(late_nanos) AS late, sum(credited_nanos) AS credited, "
        "sum(adjusted_spend_nanos) AS adjusted FROM reporting.daily_adjusted "
        "WHERE account_id = {a:String} AND billing_day IN ('2026-03-29', '2026-03-30') "
        "GROUP BY billing_day ORDER BY billing_day",
        a=LONDON,
    )
    closed = 1_000 * (100_003 + 333_333 + 100_007) + sum(5_000_001 + 7 * n for n in range(1_200))
    late = 222_223_000 + 4_000_003
    credited = -CREDITED["c-29th"] - CREDITED["i-7"]
    own_30th = 1_000 * (100_009 + 444_449) - CREDITED["c-30th"]
    assert [tuple(row.values()) for row in rows] == [
        (closed, 0, late, credited, closed + late + credited),
        (own_30th + late + credited, late + credited, 0, 0, own_30th),
    ]
    listed = story.product.query(
        "SELECT cause, event_id, reason FROM billing.adjustments WHERE adjusts_day = '2026-03-29' "
        "ORDER BY cause, event_id"
    )
    assert [tuple(row.values()) for row in listed] == [
        ("credit", "c-29th", "invalid traffic"),
        ("credit", "i-7", "invalid traffic"),
        ("late_event", "", ""),
        ("late_event", "c-late", ""),
    ]


def test_a_month_that_is_not_closed_has_no_statement_and_says_what_is_missing(
    story: Story,
) -> None:
    assert "2026-03 of account london is not closed: 2026-03-31 (1 days)" in story.refused_early


def test_a_statement_sums_to_the_cent_and_to_the_nano(story: Story) -> None:
    march = json.loads(story.march)
    total, carried = divmod(NET_CLICKS + NET_BLOCKS, CENT)
    assert march["carried_nanos"] == carried > 0
    assert Decimal(march["total"]) == Decimal(total) / 100
    lines = {line["campaign_id"]: Decimal(line["amount"]) for line in march["lines"]}
    assert sum(lines.values()) == Decimal(march["total"])
    for campaign_id, exact in (("clicks-campaign", NET_CLICKS), ("blocks-campaign", NET_BLOCKS)):
        assert abs(lines[campaign_id] * 100 * CENT - exact) < CENT

    done = story.product.run(*statement_of(LONDON, "2026-04"))
    april = json.loads(done.stdout)
    of_april = 1_000_000_000 + 666_667_000 - 555_557_000
    assert int(Decimal(april["total"]) * 100) * CENT + april["carried_nanos"] == (
        of_april + march["carried_nanos"]
    )


def test_a_month_without_charges_has_a_statement_of_nothing(story: Story) -> None:
    april = json.loads(story.product.run(*statement_of(LOS_ANGELES, "2026-04")).stdout)
    march = json.loads(story.product.run(*statement_of(LOS_ANGELES, "2026-03")).stdout)
    assert (april["total"], april["lines"]) == ("0.00", [])
    assert april["carried_nanos"] == march["carried_nanos"] == 703_703_000 % CENT


def test_a_statement_is_the_same_whenever_and_however_it_is_asked_for(
    story: Story, tmp_path: Path
) -> None:
    run = story.product.run
    assert run(*statement_of(LONDON, "2026-03")).stdout == story.march
    found = list(csv.DictReader(io.StringIO(run(*statement_of(LONDON, "2026-03", "csv")).stdout)))
    path = tmp_path / "march.parquet"
    done = run(*statement_of(LONDON, "2026-03", "parquet"), "--out", str(path))
    assert done.returncode == 0, done.stderr
    as_parquet = pq.read_table(path).to_pylist()
    assert [{name: str(value) for name, value in row.items()} for row in as_parquet] == found
    total = json.loads(story.march)["total"]
    assert str(sum(Decimal(row["amount"]) for row in found)) == total
    assert total in run(*statement_of(LONDON, "2026-03", "table")).stdout


# -- corruptions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One row to be corrupted: where it is, its amount, and its day."""

    table: str
    where: str
    amount: str
    day: str
    own_check: str
    """The check that holds this table against others, whatever was done to it; but for a close
    that is deleted, and a charge that stands twice, which have checks of their own."""


ROWS = [
    Row(
        *("billing.events", "event_id = 'c-29th'", "amount_nanos", "posting_day"),
        "clicks_and_engagements_posted_at_once",
    ),
    Row(
        *("billing.events", "event_id = 'i-11'", "amount_nanos", "posting_day"),
        "charges_are_the_events'",
    ),
    Row(
        *("billing.charges", "event_id = 'c-29th' AND amount_nanos > 0", "amount_nanos"),
        *("posting_day", "digests"),
    ),
    Row(
        *("billing.charges", "basis = 'cpm' AND quantity = 1000", "amount_nanos", "posting_day"),
        "digests",
    ),
    Row(
        *("billing.credits", "event_id = 'c-29th'", "amount_nanos", "posting_day"),
        "credits_are_posted",
    ),
    Row(
        "reporting.daily",
        "campaign_id = 'clicks-campaign' AND billing_day = '2026-03-29'",
        *("spend_nanos", "billing_day", "daily_is_the_events'"),
    ),
    Row(
        "billing.day_closes",
        "account_id = 'london' AND billing_day = '2026-03-29'",
        *("amount_nanos", "billing_day", "closes_are_the_charges"),
    ),
    Row(
        "billing.statements",
        "campaign_id = 'clicks-campaign' AND month = '2026-03-01'",
        *("amount", "month", "statements"),
    ),
]
JOURNALED = ("billing.events", "billing.charges", "billing.credits")


def deleted(row: Row) -> list[str]:
    return [f"DELETE FROM {row.table} WHERE {row.where}"]


def doubled(row: Row) -> list[str]:
    return [
        f"INSERT INTO {row.table} SETTINGS insert_deduplicate = 0 "
        f"SELECT * FROM {row.table} WHERE {row.where}"
    ]


def changed(row: Row) -> list[str]:
    """By one nano; a statement's line by one cent."""
    least = "0.01" if row.table == "billing.statements" else "1"
    return _replaced(row, f"{row.amount} + {least} AS {row.amount}")


def moved(row: Row) -> list[str]:
    """To the next day; a statement's line to the next month."""
    step = "INTERVAL 1 MONTH" if row.day == "month" else "INTERVAL 1 DAY"
    return _replaced(row, f"{row.day} + {step} AS {row.day}")


def _replaced(row: Row, column: str) -> list[str]:
    expression, _, name = column.partition(" AS ")
    return [
        "CREATE OR REPLACE TABLE kept.moving ENGINE = Memory AS "
        f"SELECT * FROM {row.table} WHERE {row.where}",
        *deleted(row),
        f"INSERT INTO {row.table} SETTINGS insert_deduplicate = 0 "
        f"SELECT * REPLACE (accurateCast({expression}, toTypeName({name})) AS {name}) "
        "FROM kept.moving",
    ]


class Copy:
    """A copy of the tables to be corrupted, beside the journal that they were made of."""

    def __init__(self, store: Store, product: Product) -> None:
        self._store = store
        self._product = product
        store.command("CREATE DATABASE kept ENGINE = Atomic")
        for table in {row.table for row in ROWS}:
            store.command(
                f"CREATE TABLE kept.{table.replace('.', '_')} ENGINE = MergeTree ORDER BY tuple() "
                f"AS SELECT * FROM {table}"
            )

    def corrupt(self, statements: list[str]) -> None:
        for statement in statements:
            self._store.command(statement)

    def restore(self) -> None:
        for table in {row.table for row in ROWS}:
            self._store.command(f"TRUNCATE TABLE {table}")
            self._store.command(
                f"INSERT INTO {table} SETTINGS insert_deduplicate = 0 "
                f"SELECT * FROM kept.{table.replace('.', '_')}"
            )

    def failed(self, lost: int | None = None) -> dict[str, list[dict[str, Any]]]:
        """Check -> what differs. `lost`: this journal record of the shard is not there."""

        async def audit() -> Audit:
            options = {"bootstrap_servers": self._product.kafka.bootstrap}
            reader = Lossy(JOURNAL, options)
            reader.lost = lost
            try:
                return await audit_journal(self._store, reader, 2)
            finally:
                await reader.stop()

        report = reconcile(self._store)
        found = {check.name: check.differing for check in report.checks if not check.ok}
        findings = asyncio.run(audit()).findings
        return found | ({"rows_of_the_journal": findings} if findings else {})


class Lossy(KafkaLogReader):
    """A reader of a log that has lost a record."""

    lost: int | None = None

    async def fetch(self, timeout_ms: int) -> list[LogRecord]:
        return [r for r in await super().fetch(timeout_ms) if r.offset != self.lost]


@pytest.fixture(scope="module")
def copy(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    path = tmp_path_factory.mktemp("copy") / "clickhouse"
    story.product.end()
    shutil.copytree(story.product.data_dir / "clickhouse", path, symlinks=True)
    story.product.start()
    store = Store(f"chdb://{path}")
    yield Copy(store, story.product)
    store.close()


@pytest.fixture
def tables(copy: Copy) -> Iterator[Copy]:
    yield copy
    copy.restore()


def test_nothing_is_reported_on_clean_books(tables: Copy) -> None:
    assert tables.failed() == {}


@pytest.mark.parametrize("corruption", [deleted, doubled, changed, moved])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table} {row.where[:20]}")
def test_a_corrupted_row_is_found_and_named(
    tables: Copy, row: Row, corruption: Callable[[Row], list[str]]
) -> None:
    tables.corrupt(corruption(row))
    failed = tables.failed()
    assert {row.own_check, "posted_once", "days_without_gaps"} & failed.keys()
    if row.table in JOURNALED:
        whats = {finding["what"] for finding in failed["rows_of_the_journal"]}
        assert {f["table"] for f in failed["rows_of_the_journal"]} == {row.table}
        expected = {"deleted": "row missing", "doubled": "row more than once"}
        assert whats <= {
            expected.get(corruption.__name__, "row changed"),
            "a journal record is missing",
        }
        if corruption in (changed, moved):
            [finding] = failed["rows_of_the_journal"]
            assert (row.amount if corruption is changed else row.day) in finding


def test_a_corruption_that_the_tables_agree_on_is_found_in_the_journal(tables: Copy) -> None:
    event = Row("billing.events", "event_id = 'c-29th'", "price_micros", "", "")
    tables.corrupt(changed(event))
    failed = tables.failed()
    assert list(failed) == ["rows_of_the_journal"]
    [finding] = failed["rows_of_the_journal"]
    assert finding["event_id"] == "c-29th"
    assert finding["price_micros"] == "333333 in the journal, 333334 in the table"


def test_a_journal_record_that_the_tables_never_got_is_named(tables: Copy, story: Story) -> None:
    [where] = story.product.query(
        "SELECT journal_partition AS p, journal_offset AS o FROM billing.events "
        "WHERE event_id = 'c-29th'"
    )
    condition = f"journal_partition = {where['p']} AND journal_offset = {where['o']}"
    tables.corrupt([f"DELETE FROM {table} WHERE {condition}" for table in JOURNALED])
    failed = tables.failed()
    assert {"shard_sequence", "rows_are_the_journal's"} <= set(failed)
    missing = failed["rows_of_the_journal"][0]
    assert (missing["what"], missing["journal_offset"]) == (
        "a journal record is missing",
        where["o"],
    )


def test_a_record_that_the_journal_has_lost_is_named(tables: Copy) -> None:
    failed = tables.failed(lost=2)
    assert list(failed) == ["rows_of_the_journal"]
    assert failed["rows_of_the_journal"][0]["what"] == "the journal is broken"
    assert "offset 3 behind record 2" in failed["rows_of_the_journal"][0]["why"]
