"""The read-only ClickHouse interface: any client reads the tables, nobody writes or looks out."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from tests.integration.product import (
    Product,
    QueryRefusedError,
    at,
    http_query,
)

NOON_MS = at("2026-03-02T12:00")

WRITES = [
    "INSERT INTO billing.events (event_id) VALUES ('x')",
    "INSERT INTO billing.charges SELECT * FROM billing.charges",
    "insert into reporting.daily select * from reporting.daily",
    "ALTER TABLE billing.events DELETE WHERE 1",
    "ALTER TABLE billing.events UPDATE amount_nanos = 0 WHERE 1",
    "DELETE FROM billing.events WHERE 1",
    "UPDATE billing.events SET amount_nanos = 0 WHERE 1",
    "TRUNCATE TABLE billing.charges",
    "DROP TABLE billing.events",
    "DROP DATABASE billing",
    "CREATE TABLE billing.mine (x Int8) ENGINE = Memory",
    "CREATE VIEW billing.mine AS SELECT 1",
    "CREATE FUNCTION f AS x -> x",
    "CREATE USER mallory",
    "RENAME TABLE billing.events TO billing.gone",
    "EXCHANGE TABLES billing.events AND billing.charges",
    "OPTIMIZE TABLE billing.events FINAL",
    "DETACH TABLE billing.events",
    "ATTACH TABLE billing.events",
    "GRANT ALL ON *.* TO default",
    "SYSTEM SHUTDOWN",
    "SYSTEM STOP MERGES",
    "KILL QUERY WHERE 1",
    "SET max_threads = 1",
    "USE system",
    "BACKUP TABLE billing.events TO Disk('d', 'x')",
    "EXPLAIN ANALYZE INSERT INTO billing.events (event_id) VALUES ('x')",
    "WITH 1 AS x INSERT INTO billing.events (event_id) SELECT toString(x)",
    "(INSERT INTO billing.events (event_id) VALUES ('x'))",
    "/* SELECT */ DROP TABLE billing.events",
    "-- SELECT\nDROP TABLE billing.events",
    "SELECT 1; DROP TABLE billing.events",
    "SELECT 1;\n;DROP TABLE billing.events;",
    "SELECT '\\'; DROP TABLE billing.events; --'; DROP TABLE billing.events",
    "SELECT * FROM billing.events INTO OUTFILE '{leak}'",
    "SELECT * FROM billing.events INTO/**/OUTFILE '{leak}'",
    "SELECT 1 SETTINGS readonly = 0",
    "SELECT 1 SETTINGS\nmax_execution_time=0, readonly=0",
    "(SELECT 1) UNION ALL (SELECT 2 SETTINGS allow_ddl = 1)",
]
LOOKS_OUT = [
    "SELECT * FROM file('/etc/passwd', 'LineAsString')",
    "SELECT * FROM file ('/etc/passwd', LineAsString, 'line String')",
    "SELECT * FROM FILE\n('/etc/passwd', 'LineAsString')",
    "SELECT file('/etc/passwd')",
    "SELECT * FROM `file`('/etc/passwd', 'LineAsString')",
    "SELECT * FROM \"file\"('/etc/passwd', 'LineAsString')",
    "SELECT * FROM '/etc/passwd'",
    'SELECT * FROM "/etc/passwd"',
    "SELECT * FROM `/etc/passwd`",
    "SELECT * FROM default.`/etc/passwd`",
    "SELECT * FROM system.one, '/etc/passwd'",
    "SELECT 1 WHERE 'root' IN `/etc/passwd`",
    "DESCRIBE TABLE '/etc/passwd'",
    "SELECT * FROM `worker.log`",
    "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString', 'line String')",
    "SELECT * FROM urlCluster('c', 'http://127.0.0.1:1/', 'LineAsString', 'line String')",
    "SELECT * FROM s3('http://127.0.0.1:1/b/k', 'CSV', 'a String')",
    "SELECT * FROM remote('127.0.0.1:1', 'system', 'one')",
    "SELECT * FROM mysql('127.0.0.1:1', 'd', 't', 'u', 'p')",
    "SELECT * FROM postgresql('127.0.0.1:1', 'd', 't', 'u', 'p')",
    "SELECT * FROM mongodb('127.0.0.1:1', 'd', 't', 'u', 'p', 'a String')",
    "SELECT * FROM redis('127.0.0.1:1', 'key', 'key String')",
    "SELECT * FROM sqlite('/tmp/x.db', 't')",
    "SELECT * FROM executable('id', 'TSV', 'a String')",
    "SELECT * FROM python('import os', 'a String')",
    "SELECT * FROM Python(reader)",
    "SELECT * FROM hdfs('hdfs://127.0.0.1:1/x', 'CSV', 'a String')",
    "SELECT * FROM azureBlobStorage('http://127.0.0.1:1', 'c', 'b', 'a', 'k')",
    "SELECT * FROM deltaLake('http://127.0.0.1:1/x')",
    "SELECT * FROM iceberg('http://127.0.0.1:1/x')",
    "SELECT * FROM jdbc('jdbc:x', 't')",
    "SELECT * FROM odbc('DSN=x', 't')",
    "SELECT * FROM cluster('default', 'system', 'one')",
    "SELECT * FROM merge('system', 'one') WHERE dummy IN (SELECT 1 FROM file('/etc/passwd'))",
    "WITH (SELECT line FROM file('/etc/passwd', 'LineAsString') LIMIT 1) AS x SELECT x",
    "DESCRIBE file('/etc/passwd', 'LineAsString')",
    "DESCRIBE TABLE url('http://127.0.0.1:1/', 'LineAsString')",
    "EXPLAIN SELECT * FROM file('/etc/passwd', 'LineAsString')",
    "SELECT $$file$$",
]


def is_refused(product: Product, sql: str) -> QueryRefusedError:
    with pytest.raises(QueryRefusedError) as refused:
        print(f"{sql!r} answered: {http_query(product.clickhouse, sql)[:300]!r}")
    return refused.value


@pytest.mark.parametrize("sql", WRITES)
def test_what_is_not_a_read_is_refused(product: Product, sql: str, tmp_path: Path) -> None:
    leak = tmp_path / "leak.tsv"
    before = product.query("SELECT count() AS n FROM billing.events")
    refused = is_refused(product, sql.replace("{leak}", str(leak)))
    assert refused.status in (400, 403)  # 400: what the engine cannot even parse as a read
    assert not leak.exists()
    assert product.query("SELECT count() AS n FROM billing.events") == before


@pytest.mark.parametrize("sql", LOOKS_OUT)
def test_what_reaches_outside_the_tables_is_refused(product: Product, sql: str) -> None:
    refused = is_refused(product, sql)
    assert refused.status in (400, 403, 404)
    assert "root:" not in str(refused)


def test_a_setting_in_the_address_does_not_lift_the_bar(product: Product, tmp_path: Path) -> None:
    for settings in ({"readonly": "0"}, {"allow_ddl": "1"}, {"session_id": "s"}):
        address = f"{product.clickhouse}/?{urllib.parse.urlencode(settings)}"
        request = urllib.request.Request(address, data=b"DROP TABLE billing.events")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=30)
    split = urllib.parse.urlencode({"query": "DROP"})
    request = urllib.request.Request(f"{product.clickhouse}/?{split}", data=b"TABLE billing.events")
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=30)
    assert product.query("EXISTS TABLE billing.events") == [{"result": 1}]


def test_a_parameter_cannot_become_a_statement(product: Product) -> None:
    hostile = "x' OR 1 = 1; DROP TABLE billing.events; --"
    rows = product.query(
        "SELECT count() AS n FROM billing.events WHERE event_id = {id:String}", id=hostile
    )
    assert rows == [{"n": 0}]


def test_it_listens_on_loopback_alone(product: Product) -> None:
    assert urllib.parse.urlsplit(product.clickhouse).hostname == "127.0.0.1"
    assert urllib.parse.urlsplit(product.web).hostname == "127.0.0.1"
    assert product.kafka.bootstrap.startswith("127.0.0.1:")


# -- clients --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(product: Product) -> Iterator[Client]:
    """ClickHouse's own Python client, over HTTP."""
    host, _, port = product.clickhouse.removeprefix("http://").partition(":")
    connected = clickhouse_connect.get_client(host=host, port=int(port))
    yield connected
    connected.close()


@pytest.fixture(scope="module")
def event_ids(product: Product) -> list[str]:
    """Ids that a careless client would spoil, of charged clicks."""
    ad = product.ad("client", "traffic", at("2026-02-10"))
    names = ["client-1", "it's", "tab\tand\nline", "back\\slash", "📌 ünïcode", "{x:String}"]
    product.publish(*(ad.click(name, NOON_MS + n, price_micros=n) for n, name in enumerate(names)))
    product.settle()
    return names


def test_the_python_client_reads_rows_with_types(client: Client, event_ids: list[str]) -> None:
    result = client.query(
        "SELECT event_id, amount_nanos, billing_day, disposition FROM billing.events "
        "WHERE account_id = 'client-account' ORDER BY shard_seq"
    )
    assert result.result_rows == [
        (name, number * 1_000, date(2026, 3, 2), "charged") for number, name in enumerate(event_ids)
    ]


def test_the_python_client_binds_parameters(client: Client, event_ids: list[str]) -> None:
    for name in event_ids:
        result = client.query(
            "SELECT event_id FROM billing.events WHERE event_id = {id:String} "
            "AND billing_day = {day:Date} AND amount_nanos >= {least:Int64}",
            parameters={"id": name, "day": date(2026, 3, 2), "least": 0},
        )
        assert result.result_rows == [(name,)], name
    many = client.query(
        "SELECT count() FROM billing.events WHERE event_id IN {ids:Array(String)}",
        parameters={"ids": event_ids},
    )
    assert many.result_rows == [(len(event_ids),)]


def test_the_python_client_reads_arrow(client: Client, event_ids: list[str]) -> None:
    table = client.query_arrow(
        "SELECT event_id, free_nanos, event_time_ms FROM billing.events "
        "WHERE account_id = 'client-account' ORDER BY shard_seq",
        use_strings=True,
    )
    assert table.column("event_id").to_pylist() == event_ids
    assert table.column("event_time_ms").to_pylist() == [
        NOON_MS + number for number in range(len(event_ids))
    ]


def test_the_python_client_is_told_of_a_mistake(client: Client) -> None:
    with pytest.raises(DatabaseError, match="no_such_table"):
        client.query("SELECT * FROM billing.no_such_table")
    with pytest.raises(DatabaseError, match="only reads"):
        client.command("DROP TABLE billing.events")


def test_formats_and_plain_gets(product: Product, event_ids: list[str]) -> None:
    sql = (
        "SELECT event_id, amount_nanos FROM billing.events "
        "WHERE account_id = 'client-account' ORDER BY shard_seq LIMIT 2"
    )
    lines = http_query(product.clickhouse, f"{sql} FORMAT JSONEachRow").splitlines()
    assert [json.loads(line)["event_id"] for line in lines] == event_ids[:2]
    assert http_query(product.clickhouse, f"{sql} FORMAT CSV").splitlines()[0] == b'"client-1",0'
    address = f"{product.clickhouse}/?{urllib.parse.urlencode({'query': sql})}"
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert answer.read() == b"client-1\t0\nit\\'s\t1000\n"
    with urllib.request.urlopen(f"{product.clickhouse}/ping", timeout=30) as answer:
        assert answer.read() == b"Ok.\n"


def test_reads_of_every_kind_are_answered(product: Product) -> None:
    for sql in (
        "SELECT 1 AS one",
        "WITH 2 AS two SELECT two",
        "(SELECT 1 AS a) UNION ALL (SELECT 2 AS a)",
        "SHOW DATABASES",
        "SHOW TABLES FROM billing",
        "DESCRIBE TABLE billing.events",
        "EXISTS TABLE billing.events",
        "EXPLAIN SELECT count() FROM billing.events",
        "SELECT 'DROP TABLE x; -- in a string' AS text",
        "SELECT name FROM system.tables WHERE database = 'billing'",
        "SELECT count() AS n FROM billing.events WHERE event_id LIKE '%file(%'",
    ):
        assert product.query(sql), sql


def test_the_health_pages_say_that_all_is_well(product: Product) -> None:
    with urllib.request.urlopen(f"{product.web}/health", timeout=30) as answer:
        health = json.loads(answer.read())
    assert health["healthy"] is True
    assert health["worker"]["shards"] == [0, 1]
    assert health["reporter"]["stopped"] == {}
    with urllib.request.urlopen(product.web, timeout=30) as answer:
        assert "<h1>Figures" in answer.read().decode()
