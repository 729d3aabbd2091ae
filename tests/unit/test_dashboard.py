"""What a request may ask for, how amounts are shown, and who is let in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from pipeline.dashboard import figures, queries
from pipeline.dashboard.chart import Mark, spend_chart
from pipeline.dashboard.server import Dashboard, DashboardSettings, check_exposure
from pipeline.dashboard.view import LEVELS, SORTS, BadRequest, parse_view
from pipeline.reporting import schema
from pipeline.reporting.clickhouse import Store

DAY = date(2026, 3, 2)
TOKEN = "a token of sufficient length"
HOSTILE = "x' OR 1=1; DROP TABLE billing.events --"

Client = TestClient[web.Request, web.Application]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    one = Store(f"chdb://{tmp_path_factory.mktemp('dashboard')}")
    schema.apply(one)
    yield one
    one.close()  # a process has one engine at a time


async def client_of(store: Store, token: str = "") -> Client:
    dashboard = Dashboard(lambda: store, DashboardSettings(token))
    client = TestClient(TestServer(dashboard.application()))
    await client.start_server()
    return client


@pytest.fixture
async def client(store: Store) -> AsyncIterator[Client]:
    one = await client_of(store)
    yield one
    await one.close()


@pytest.fixture
async def guarded(store: Store) -> AsyncIterator[Client]:
    one = await client_of(store, TOKEN)
    yield one
    await one.close()


# -- requests ---------------------------------------------------------------------------------


def test_a_view_survives_its_own_query_string() -> None:
    asked = {
        "level": "pins",
        "from": "2026-03-01",
        "to": "2026-03-02",
        "campaign_id": "c&1",
        "q": "p=",
        "sort": "ctr",
        "order": "asc",
        "page": "3",
    }
    view = parse_view(asked, DAY)
    assert {name: values[0] for name, values in parse_qs(view.query()).items()} == asked


def test_any_id_of_the_catalog_can_be_asked_for() -> None:
    for id_ in (" spaced ", "x" * 256):
        view = parse_view({"campaign_id": id_, "q": id_}, DAY)
        assert view.filters == (("campaign_id", id_),)
        assert view.text == id_.strip()


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"level": "planets"}, "level: one of accounts"),
        ({"sort": "spend_nanos; DROP"}, "sort: one of"),
        ({"order": "sideways"}, "order: one of asc, desc"),
        ({"from": "yesterday"}, "from: 'yesterday' is not a day"),
        ({"from": "1960-01-01"}, "out of range"),
        ({"from": "2026-03-02", "to": "2026-03-01"}, "is before"),
        ({"page": "0"}, "page: a number from 1 on"),
        ({"page": "²"}, "page: a number from 1 on"),
        ({"q": "x" * 257}, "at most 256 characters"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_why(asked: dict[str, str], text: str) -> None:
    with pytest.raises(BadRequest, match=text):
        parse_view(asked, DAY)


def test_what_a_request_says_is_never_in_the_sql() -> None:
    asked = dict.fromkeys(("q", "account_id", "campaign_id", "placement", "country"), HOSTILE)
    view = parse_view(asked, DAY)
    for query in (queries.figures(view, live=False), queries.totals(view, live=True)):
        assert "DROP" not in query.sql
        assert list(query.parameters.values()).count(HOSTILE) == len(asked)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("live", [False, True])
def test_every_table_runs_in_every_order(store: Store, level: str, live: bool) -> None:
    for sort in SORTS:
        view = parse_view({"level": level, "sort": sort, "q": HOSTILE, "device": HOSTILE}, DAY)
        query = queries.figures(view, live=live)
        assert store.dicts(query.sql, query.parameters) == []


# -- figures ----------------------------------------------------------------------------------


def test_amounts_are_rounded_half_up_from_exact_nanos() -> None:
    assert figures.money(1_234_567_894_999_999) == "1,234,567.89"
    assert figures.money(5_000_000) == "0.01"
    assert figures.money(4_999_999) == "0.00"
    assert figures.average(0) == "—"
    assert figures.average(123_450_000) == "0.1235"


def test_a_budget_that_changed_in_the_day_is_the_largest_that_was_in_force() -> None:
    def change(at_ms: int, new: str, field: str = "budget_micros") -> figures.Row:
        return {"entity": "ad_group:1", "field": field, "effective_ms": at_ms, "new": new}

    changes = [
        change(0, '"daily"', "budget_type"),
        change(0, "90000000"),
        change(50, "10000000"),  # before the day: what was before it counts no more
        change(150, "20000000"),
        change(160, "15000000"),
    ]
    fields = figures.limits_on(changes, day_start_ms=100)["ad_group:1"]
    budget = figures.budget_of(fields, 5_000_000_000, 1, 0)
    assert (budget.text, budget.used_text) == ("20.00 a day", "25.0%")
    assert figures.budget_of(fields, 5_000_000_000, 7, 0).used_text == "—"


def test_an_id_that_a_spreadsheet_would_run_is_quoted_in_csv() -> None:
    view = parse_view({"level": "accounts"}, DAY)
    amounts = dict.fromkeys(
        ("spend_nanos", "free_nanos", "cpc_nanos", "cpm_nanos", "cpe_nanos"), 1_234_567_891
    )
    row = dict.fromkeys(figures.CSV_COLUMNS, 0) | amounts | {"account_id": "=1+1"}
    header, line = figures.to_csv(view, [row], provisional=False).splitlines()
    cells = dict(zip(header.split(","), line.split(","), strict=True))
    assert cells["account_id"] == "'=1+1"
    assert cells["spend"] == "1.234567891"


def test_the_curve_stays_level_between_steps_and_within_its_box() -> None:
    hour = 3_600_000
    points = [(0, 0), (6 * hour, 5_000_000_000), (12 * hour, 10_000_000_000)]
    marks = [Mark(12 * hour, "pause", "paused")]
    chart = spend_chart(points, [(0, 10_000_000_000)], marks, (0, 24 * hour), UTC)
    assert chart.spend_path.startswith(f"M{chart.left:.1f} {chart.bottom:.1f}H")
    assert chart.marks[0].x == (chart.left + chart.right) / 2
    assert [tick.text for tick in chart.x_ticks][:3] == ["00:00", "03:00", "06:00"]
    assert all(chart.top <= tick.y <= chart.bottom for tick in chart.y_ticks)
    assert chart.limit_path.endswith(f"H{chart.right}V{chart.limit_label.y}")  # type: ignore[union-attr]


# -- who is let in ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/today", "/finance", "/finance/2026-03-02", "/operations"])
async def test_every_page_is_there_before_there_is_data(client: Client, path: str) -> None:
    response = await client.get(path)
    assert response.status == 200
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert response.headers["Cache-Control"] == "no-store"


async def test_what_a_request_says_comes_back_escaped(client: Client) -> None:
    script = "<script>alert(1)</script>"
    for path in ("/", "/today"):
        assert script not in await (await client.get(path, params={"q": script})).text()
    response = await client.get(f"/ad-group/{script.replace('/', '%2F')}")
    assert response.status == 400
    assert script not in await response.text()


async def test_a_name_that_was_made_to_point_here_is_refused(client: Client) -> None:
    assert (await client.get("/", headers={"Host": "evil.example:80"})).status == 403
    assert (await client.get("/", headers={"Host": "localhost:80"})).status == 200


async def test_without_the_token_only_the_login_is_shown(guarded: Client) -> None:
    for path in ("/", "/today", "/figures.csv", "/finance", "/operations", "/ad-group/1"):
        response = await guarded.get(path, allow_redirects=False)
        assert (response.status, response.headers["Location"]) == (303, "/login")
    assert (await guarded.get("/login")).status == 200
    assert (await guarded.post("/login", data={"token": "guess"})).status == 403
    wrong = {"Authorization": "Bearer guess"}
    assert (await guarded.get("/", headers=wrong, allow_redirects=False)).status == 303


async def test_the_token_lets_in_by_login_and_by_header(guarded: Client) -> None:
    right = {"Authorization": f"Bearer {TOKEN}"}
    assert (await guarded.get("/", headers=right, allow_redirects=False)).status == 200
    entered = await guarded.post("/login", data={"token": TOKEN}, allow_redirects=False)
    cookie = entered.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert (await guarded.get("/finance", allow_redirects=False)).status == 200


async def test_a_clickhouse_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    dashboard = Dashboard(lambda: Store("http://127.0.0.1:9/"), DashboardSettings())
    client: Client = TestClient(TestServer(dashboard.application()))
    await client.start_server()
    try:
        for path in ("/", "/health"):
            response = await client.get(path)
            assert response.status == 503
            assert "127.0.0.1:9" in await response.text()
    finally:
        await client.close()


def test_others_are_not_let_near_without_a_token() -> None:
    check_exposure("127.0.0.1", "")
    check_exposure("0.0.0.0", TOKEN)
    for token in ("", "short"):
        with pytest.raises(ValueError, match="PIPELINE_DASHBOARD_TOKEN"):
            check_exposure("0.0.0.0", token)
