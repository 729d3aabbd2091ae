"""The dashboard in a real Chromium: the pages show the numbers that SQL gives."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .conftest import CLOSED_DAY, OPEN_DAY, Running, get, query

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip(
        "no chromium: the dashboard's pages are not tested in a browser (apt-get install chromium)",
        allow_module_level=True,
    )

from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

ARGUMENTS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield one
        one.close()


@pytest.fixture
def page(browser: Browser, running: Running) -> Iterator[Page]:
    """A page that must not complain, nor ask anybody but the product for anything."""
    context = browser.new_context(viewport={"width": 1360, "height": 900}, base_url=running.web)
    one = context.new_page()
    complaints: list[str] = []
    one.on("console", lambda message: complaints.append(message.text))
    one.on("pageerror", lambda error: complaints.append(str(error)))
    one.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    hosts: set[str] = set()
    yield one
    context.close()
    assert complaints == []
    assert hosts - {""} == {urlsplit(running.web).netloc}


@pytest.fixture
def screenshot(tmp_path: Path) -> Path:
    """Where screenshots go: docs/screenshots with `make screenshots`."""
    where = Path(os.environ.get("PIPELINE_TEST_SCREENSHOTS", tmp_path))
    where.mkdir(exist_ok=True)
    return where


def cents(nanos: object) -> str:
    amount = (Decimal(str(nanos)) / 10**9).quantize(Decimal("0.01"), ROUND_HALF_UP)
    return f"{amount:,}"


def column(page: Page, selector: str, heading: str) -> list[str]:
    """The cells of a table's column."""
    headings = [
        text.strip(" ▼▲") for text in page.locator(f"{selector} thead th").all_inner_texts()
    ]
    at = headings.index(heading) + 1
    cells = page.locator(f"{selector} tbody tr > :nth-child({at})").all_inner_texts()
    return [cell.strip() for cell in cells]


def test_the_figures_are_those_of_the_closed_days(
    page: Page, running: Running, screenshot: Path
) -> None:
    page.goto("/?level=ad-groups")
    assert page.get_by_label("From").input_value() == CLOSED_DAY
    rows = query(
        running,
        "SELECT ad_group_id, sum(spend_nanos) AS s, sum(impressions), sum(clicks), sum(free_nanos) "
        f"FROM reporting.daily WHERE billing_day = '{CLOSED_DAY}' GROUP BY 1 "
        "ORDER BY s DESC, any(account_id), any(campaign_id), ad_group_id",
    )
    assert len(rows) > 10
    assert column(page, ".figures", "Spend") == [cents(row[1]) for row in rows]
    assert column(page, ".figures", "Impressions") == [f"{int(str(row[2])):,}" for row in rows]
    assert column(page, ".figures", "Clicks") == [f"{int(str(row[3])):,}" for row in rows]
    assert column(page, ".figures", "Free") == [cents(row[4]) for row in rows]
    totals = query(
        running,
        "SELECT currency, sum(spend_nanos) FROM reporting.daily "
        f"WHERE billing_day = '{CLOSED_DAY}' GROUP BY 1 ORDER BY 1",
    )
    for currency, spend in totals:
        tile = page.locator(f".tile[data-currency={currency}] .big dd")
        assert tile.inner_text().split() == [cents(spend), currency]
    page.screenshot(path=screenshot / "figures.png")


def test_headings_sort_filters_narrow_and_rows_lead_below(page: Page, running: Running) -> None:
    page.goto("/?level=campaigns")
    page.locator(".figures thead").get_by_role("link", name="Clicks").click()
    clicks = [int(text.replace(",", "")) for text in column(page, ".figures", "Clicks")]
    assert clicks == sorted(clicks, reverse=True)
    page.locator(".figures thead").get_by_role("link", name="Clicks").click()
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    page.get_by_label("Name contains").fill("c1")
    page.get_by_role("button", name="Show").click()
    names = [text.split()[0] for text in column(page, ".figures", "Campaign")]
    assert names
    assert all("c1" in name for name in names)
    page.get_by_role("link", name="ad groups of").first.click()
    assert set(column(page, ".figures", "Belongs to")) == {
        page.get_by_label("Campaign").input_value()
    }


def test_the_csv_holds_exact_amounts(running: Running) -> None:
    status, body, headers = get(f"{running.web}/figures.csv?level=accounts&from={CLOSED_DAY}")
    assert status == 200
    assert headers["Content-Disposition"].startswith("attachment")
    header, *lines = body.decode().splitlines()
    at = header.split(",").index("spend")
    in_csv = sum(Decimal(line.split(",")[at]) for line in lines)
    [[nanos]] = query(
        running,
        f"SELECT sum(spend_nanos) FROM reporting.daily WHERE billing_day = '{CLOSED_DAY}'",
    )
    assert in_csv == Decimal(str(nanos)) / 10**9


def test_today_is_marked_provisional_and_is_what_is_live(
    page: Page, running: Running, screenshot: Path
) -> None:
    page.goto("/today?level=accounts")
    assert "Provisional." in page.locator(".notice").inner_text()
    assert page.get_by_label("From").input_value() == OPEN_DAY
    rows = query(
        running,
        "SELECT account_id, sum(spend_nanos) AS s FROM reporting.live "
        f"WHERE billing_day = '{OPEN_DAY}' GROUP BY 1 ORDER BY s DESC",
    )
    assert rows
    assert column(page, ".figures", "Spend") == [cents(row[1]) for row in rows]
    page.screenshot(path=screenshot / "today.png")


def test_an_ad_groups_day_shows_its_curve_its_limit_and_its_signals(
    page: Page, running: Running, screenshot: Path
) -> None:
    [[entity, signals]] = query(
        running,
        "SELECT entity, toUInt32(count()) FROM reporting.signals WHERE entity LIKE 'ad_group:%' "
        f"AND action = 'pause' AND billing_day = '{CLOSED_DAY}' "
        "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1",
    )
    ad_group = str(entity).removeprefix("ad_group:")
    [[spend]] = query(
        running,
        "SELECT sum(amount_nanos) FROM billing.events "
        f"WHERE ad_group_id = '{ad_group}' AND billing_day = '{CLOSED_DAY}'",
    )
    page.goto(f"/ad-group/{ad_group}?day={CLOSED_DAY}")
    assert page.locator(".tile .big dd").inner_text().split()[0] == cents(spend)
    assert page.locator("svg .limit").count() == 1
    assert page.locator("svg .mark.pause").count() >= int(str(signals))
    chart = page.locator("#spend-curve")
    chart.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#read-out").inner_text().endswith(cents(spend))
    page.screenshot(path=screenshot / "ad-group.png")


def test_finance_shows_closes_that_four_tables_agree_on(
    page: Page, running: Running, screenshot: Path
) -> None:
    page.goto("/finance")
    assert "agree to the nano" in page.locator("#agreement").inner_text()
    rows = query(
        running,
        "SELECT billing_day, currency, sum(amount_nanos) FROM billing.day_closes "
        "GROUP BY 1, 2 ORDER BY 1 DESC, 2",
    )
    assert column(page, "#closed-days", "Day") == [row[0] for row in rows]
    for heading in ("Events", "Charged", "Dashboards", "Closed"):
        assert column(page, "#closed-days", heading) == [cents(row[2]) for row in rows]
    free = query(
        running,
        "SELECT sum(free_nanos) FROM billing.events WHERE free_nanos > 0 "
        "GROUP BY posting_day, currency, `limit` ORDER BY posting_day DESC, currency, `limit`",
    )
    assert column(page, "#free", "Value not charged") == [cents(row[0]) for row in free]
    page.screenshot(path=screenshot / "finance.png")
    page.get_by_role("link", name=CLOSED_DAY).first.click()
    digests = query(
        running,
        f"SELECT digest FROM billing.day_closes WHERE billing_day = '{CLOSED_DAY}' "
        "ORDER BY account_id",
    )
    assert page.locator(".digest").all_inner_texts() == [row[0] for row in digests]


def test_operations_show_every_shard_and_what_the_parts_say(
    page: Page, running: Running, screenshot: Path
) -> None:
    page.goto("/operations")
    rows = query(
        running,
        "SELECT toUInt32(count()) FROM billing.events GROUP BY journal_partition "
        "ORDER BY journal_partition",
    )
    assert column(page, "#shards", "Events in the tables") == [f"{row[0]:,}" for row in rows]
    assert column(page, "#shards", "Events to judge") == ["0"] * len(rows)
    page.screenshot(path=screenshot / "operations.png")


def test_every_page_can_be_read_without_seeing_it(page: Page) -> None:
    for path in ("/", "/today", "/finance", "/operations"):
        page.goto(path)
        assert page.locator("html[lang]").count() == 1
        assert page.get_by_role("heading", level=1).count() == 1
        assert page.locator("nav[aria-label=Pages] a[aria-current=page]").count() == 1
        unnamed = page.evaluate(
            "[...document.querySelectorAll('input:not([type=hidden]), select')]"
            ".filter(e => !e.labels.length).length"
        )
        assert unnamed == 0
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
