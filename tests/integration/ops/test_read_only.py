"""The read-only interface against an embedded engine: reads pass, and nothing else does."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import FormData, web
from aiohttp.test_utils import TestClient, TestServer

from pipeline.reporting import schema
from pipeline.reporting.clickhouse import Store
from pipeline.reporting.http import ReadOnlyHttp

Client = TestClient[web.Request, web.Application]

READS = [
    ("SELECT 1", "1"),
    ("SELECT 1;", "1"),
    ("  (SELECT 1)  ", "1"),
    ("/* a dashboard's name */ SELECT 1 -- and why", "1"),
    ("-- first\nSELECT 1", "1"),
    ("SELECT 1 # a comment\n", "1"),
    ("SELECT 'a;b -- c /* d'", "a;b -- c /* d"),
    ("SELECT 'it''s', 'it\\'s'", "it\\'s\tit\\'s"),
    ("SELECT count() FROM billing.events", "0"),
    ("SELECT count() FROM billing.`events` AS e", "0"),
    ("SELECT sum(spend_nanos) FROM reporting.live", "0"),
    ("WITH t AS (SELECT 1 AS a) SELECT a FROM t", "1"),
    ("WITH t AS (SELECT 1 AS a) SELECT 1 IN t", "1"),
    ("SELECT 1 AS `my column` ORDER BY `my column`", "1"),
    ("SELECT 'ä' AS x", "ä"),
    ("SELECT count() FROM numbers(3)", "3"),
    ("SELECT a FROM VALUES('a Int8', 7)", "7"),
    (
        "SELECT count() FROM (SELECT * FROM billing.events UNION ALL SELECT * FROM billing.events)",
        "0",
    ),
    ("SELECT account_id IN (SELECT account_id FROM billing.events) FROM billing.day_closes", ""),
    ("EXISTS TABLE billing.events", "1"),
    ("SELECT format('{}-{}', 1, 2)", "1-2"),
    ("SELECT name FROM system.tables WHERE database = 'billing' AND name = 'events'", "events"),
    ("SELECT COUNT(*) FROM information_schema.tables WHERE table_name = 'live'", "1"),
]
LONGER_READS = [
    "SHOW DATABASES",
    "SHOW TABLES FROM billing",
    "SHOW COLUMNS FROM billing.events",
    "SHOW CREATE TABLE billing.events",
    "DESCRIBE TABLE reporting.daily",
    "DESC (SELECT 1)",
    "EXPLAIN SELECT * FROM billing.events",
    "EXPLAIN PLAN actions = 1 SELECT * FROM billing.events",
    "EXPLAIN AST SELECT 1",
    "SELECT * FROM system.settings LIMIT 3",
]

FILE_FUNCTIONS = (
    "file fileCluster url urlCluster s3 s3Cluster gcs cosn oss hdfs hdfsCluster azureBlobStorage "
    "remote remoteSecure cluster clusterAllReplicas mysql postgresql mongodb redis sqlite jdbc "
    "odbc iceberg icebergS3 icebergLocal deltaLake deltaLakeLocal hudi executable input dictionary "
    "merge python paimon paimonLocal ytsaurus arrowStream mergeTreeIndex mergeTreeProjection loop "
    "filesystem bigquery prometheusQuery timeSeriesData eval viewExplain fuzzQuery fuzzJSON"
)
TABLE_FUNCTION_SHAPES = (
    "SELECT * FROM {}('/etc/passwd')",
    "SELECT * FROM {}/**/('/etc/passwd')",
    "SELECT 1 WHERE 1 IN (SELECT * FROM {}('/etc/passwd'))",
)
SINGLE = [
    # another statement
    "SELECT 1; DROP TABLE billing.events",
    "SELECT 1;;DROP TABLE billing.events",
    "SELECT 1 /* */; /* */ INSERT INTO billing.charges (charge_id) VALUES ('x')",
    "SELECT 1 -- '\n; DROP TABLE billing.events -- '",
    "SELECT '\\'; DROP TABLE billing.events --'; DROP TABLE billing.events",
    "SELECT 1; 'x'",
    # not a read
    "DROP TABLE billing.events",
    "/* SELECT */ DROP TABLE billing.events",
    "TRUNCATE TABLE billing.events",
    "ALTER TABLE billing.events DELETE WHERE 1",
    "ALTER TABLE billing.events DROP PARTITION '2026-03-02'",
    "OPTIMIZE TABLE billing.events FINAL",
    "DELETE FROM billing.events WHERE 1",
    "UPDATE billing.events SET amount_nanos = 0 WHERE 1",
    "INSERT INTO billing.charges (charge_id) VALUES ('x')",
    "INSERT INTO FUNCTION file('x.csv') SELECT 1",
    "WITH a AS (SELECT 1) INSERT INTO billing.charges (charge_id) SELECT 'x'",
    "CREATE TABLE billing.mine (a Int8) ENGINE = Memory",
    "CREATE VIEW billing.mine AS SELECT 1",
    "CREATE FUNCTION f AS (x) -> x",
    "CREATE DATABASE mine",
    "CREATE USER mine",
    "CREATE NAMED COLLECTION c AS a = 1",
    "GRANT ALL ON *.* TO default",
    "RENAME TABLE billing.events TO billing.gone",
    "EXCHANGE TABLES billing.events AND billing.charges",
    "DETACH TABLE billing.events",
    "ATTACH TABLE billing.events",
    "SYSTEM SHUTDOWN",
    "SYSTEM STOP MERGES",
    "SYSTEM FLUSH LOGS",
    "SET readonly = 0",
    "SET max_threads = 1",
    "USE billing",
    "KILL QUERY WHERE 1",
    "BACKUP TABLE billing.events TO Disk('default', 'x')",
    "RESTORE TABLE billing.events FROM Disk('default', 'x')",
    "BEGIN TRANSACTION",
    "CHECK TABLE billing.events",
    "WATCH billing.events",
    "EXECUTE AS default SELECT 1",
    "PARALLEL WITH SELECT 1 PARALLEL WITH SELECT 2",
    "EXPLAIN INSERT INTO billing.charges (charge_id) SELECT 'x' FROM file('a.csv')",
    "SHOW PROCESSLIST",
    "SHOW GRANTS",
    "SHOW ACCESS",
    "SHOW USERS",
    "SHOW CREATE USER default",
    "SHOW SETTINGS LIKE 'x'; DROP TABLE billing.events",
    # files and settings
    "SELECT 1 INTO OUTFILE '/tmp/x'",
    "SELECT 1 INTO/**/OUTFILE '/tmp/x'",
    "SELECT 1 INTO\nOUTFILE '/tmp/x' TRUNCATE FORMAT CSV",
    "SELECT 1 INTO OUTFILE '/tmp/x' AND STDOUT",
    "(SELECT 1) UNION ALL (SELECT 2) INTO OUTFILE '/tmp/x'",
    "SELECT 1 SETTINGS readonly = 0",
    "SELECT 1 SETTINGS/**/max_threads = 1",
    "SELECT 1 FORMAT CSV SETTINGS max_threads = 1",
    "SELECT * FROM (SELECT 1 SETTINGS max_memory_usage = 0)",
    "EXPLAIN actions = 1 SELECT 1 SETTINGS actions = 1",
    # files that the embedded engine takes for tables
    "SELECT * FROM 'secret.csv'",
    'SELECT * FROM "secret.csv"',
    "SELECT * FROM `secret.csv`",
    'SELECT * FROM "/etc/passwd"',
    "SELECT * FROM `../secret.csv`",
    "SELECT * FROM secret",
    "SELECT * FROM default.`secret.csv`",
    "SELECT * FROM _local.`secret.csv`",
    "SELECT 1 IN `secret.csv`",
    "SELECT 1 NOT IN `secret.csv`",
    "SELECT 1 GLOBAL IN `secret.csv`",
    "SELECT * FROM billing.events JOIN `secret.csv` ON 1",
    "SELECT * FROM billing.events, `secret.csv`",
    "WITH a AS (SELECT * FROM `secret.csv`) SELECT * FROM a",
    "SELECT (SELECT a FROM `secret.csv`)",
    "DESCRIBE TABLE `secret.csv`",
    "DESCRIBE file('secret.csv')",
    "DESC (SELECT * FROM file('secret.csv'))",
    "EXPLAIN SELECT * FROM file('secret.csv')",
    "EXPLAIN ESTIMATE SELECT * FROM file('secret.csv')",
    "SHOW CREATE TABLE `secret.csv`",
    "EXISTS TABLE `secret.csv`",
    # functions that reach outside
    "SELECT file('secret.csv')",
    "SELECT `file`('secret.csv')",
    "SELECT \"file\"('secret.csv')",
    "SELECT * FROM `file`('secret.csv')",
    "SELECT FILE('secret.csv')",
    "SELECT * FROM FiLe('secret.csv')",
    "SELECT arrayMap(x -> file(x), ['secret.csv'])",
    "SELECT * FROM view(SELECT * FROM file('secret.csv'))",
    "SELECT * FROM viewIfPermitted(SELECT 1 ELSE null('a Int8'))",
    "SELECT dictGet('d', 'a', 1)",
    "SELECT dictGetOrDefault('d', 'a', 1, 2)",
    "SELECT joinGet('billing.events', 'a', 1)",
    "SELECT sleep(3)",
    "SELECT sleepEachRow(1) FROM numbers(3)",
    "SELECT getServerSetting('max_thread_pool_size')",
    "SELECT getClientHTTPHeader('Authorization')",
    "SELECT catboostEvaluate('/etc/passwd', 1)",
    "SELECT aiGenerate('tell me')",
    "SELECT addressToLine(1)",
    "SELECT filesystemAvailable()",
    "SELECT hostName()",
    # what the engine knows of itself and its users
    "SELECT * FROM system.processes",
    "SELECT * FROM system.query_log",
    "SELECT * FROM system.users",
    "SELECT * FROM system.disks",
    "SELECT * FROM system.named_collections",
    "SELECT * FROM system.server_settings",
    "SELECT * FROM `system`.`zookeeper` WHERE path = '/'",
    "SELECT * FROM elsewhere.secrets",
    # two parsers that might differ
    "SELECT $$; DROP TABLE billing.events$$",
    "SELECT $a$ x $a$",
    "SELECT 1 /* /* */ ; DROP TABLE billing.events */",
    "SELECT 1 /* open",
    "SELECT 'open",
    'SELECT "open',
    "SELECT `open",
    "SELECT 1\u2028; DROP TABLE billing.events",
    "SELECT \u2018x\u2019",
    "SELECT\u00a01",
    "SELECT 1\x00; DROP TABLE billing.events",
    "SELECT '\x00'",
    "SELECT\x0b1",
    "\ufeffSELECT 1",
    "\uff33\uff25\uff2c\uff25\uff23\uff34 1",
    "SELECT * FROM {t:Identifier}",
    "SELECT * FROM {t: identifier }",
    "",
]
HOSTILE = [
    *(
        shape.format(name)
        for name, shape in itertools.product(FILE_FUNCTIONS.split(), TABLE_FUNCTION_SHAPES)
    ),
    *(one for one in SINGLE if one),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    where = tmp_path_factory.mktemp("read_only")
    (where / "secret.csv").write_text("a\n42\n")
    (where / "secret").write_text("a\n42\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)  # where the engine would look for a file that is named as a table
        one = Store(f"chdb://{where}/engine")
        schema.apply(one)
        yield one
        one.close()


@pytest.fixture
async def client(store: Store) -> AsyncIterator[Client]:
    application = web.Application()
    ReadOnlyHttp(store).add_pages(application)
    one: Client = TestClient(TestServer(application))
    await one.start_server()
    yield one
    await one.close()


@pytest.mark.parametrize(("sql", "answer"), READS)
async def test_reads_pass_with_whatever_comments_a_tool_adds(
    client: Client, sql: str, answer: str
) -> None:
    response = await client.post("/", data=sql)
    text = await response.text()
    assert response.status == 200, text
    assert text.strip() == answer


@pytest.mark.parametrize("sql", LONGER_READS)
async def test_what_tools_ask_of_the_schema_passes(client: Client, sql: str) -> None:
    response = await client.get("/", params={"query": sql})
    assert response.status == 200, await response.text()


async def test_parameters_too_long_for_an_address_are_taken_from_a_form(
    client: Client, store: Store
) -> None:
    ids = [f"account-{number:06d}" for number in range(500)]
    sql = "SELECT length({ids:Array(String)}), {ids:Array(String)}[500]"
    beside = await asyncio.to_thread(Store, str(client.make_url("/")))
    try:
        for one in (store, beside):
            rows = await asyncio.to_thread(one.rows, sql, {"ids": ids})
            assert rows == [(500, "account-000499")]
    finally:
        await asyncio.to_thread(beside.close)


@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        ({"query": "SELECT {a:String}", "param_a": "it's"}, 200, "it\\'s"),
        ({"query": "DROP TABLE billing.events"}, 403, "only reads"),
        ({"query": "SELECT * FROM {a:Identifier}", "param_a": "x"}, 403, "cannot be a name"),
        ({"query": "SELECT 1", "mine": io.BytesIO(b"1")}, 403, "tables of one's own"),
    ],
)
async def test_a_form_is_checked_as_any_query(
    client: Client, fields: dict[str, Any], status: int, text: str
) -> None:
    form = FormData(fields, default_to_multipart=True)
    response = await client.post("/", data=form)
    answer = await response.text()
    assert (response.status, text in answer) == (status, True), answer


async def test_a_broken_form_is_refused(client: Client) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = await client.post("/", data=b"no form at all", headers=headers)
    assert response.status in (400, 403), await response.text()


def test_there_are_hostile_queries_enough() -> None:
    assert len(set(HOSTILE)) >= 200


async def test_hostile_queries_are_refused_and_change_nothing(client: Client, store: Store) -> None:
    before = everything(store)
    passed = []
    for sql in HOSTILE:
        for response in (
            await client.post("/", data=sql.encode("utf-8", "surrogatepass")),
            await client.get("/", params={"query": sql, "param_t": "secret.csv"}),
        ):
            answer = (await response.text())[:80]
            if response.status == 200:
                passed.append((sql, answer))
    assert passed == []
    assert everything(store) == before
    assert not os.path.lexists("/tmp/x")  # noqa: ASYNC240


def everything(store: Store) -> list[Any]:
    """Tables with their rows, functions and settings."""
    return [
        store.rows("SELECT database, name, total_rows FROM system.tables ORDER BY ALL"),
        store.rows("SELECT name FROM system.functions WHERE origin != 'System'"),
        store.rows("SELECT name, value FROM system.settings WHERE changed ORDER BY name"),
    ]


async def test_a_format_is_a_name_and_nothing_more(client: Client) -> None:
    for form in ("CSV; DROP TABLE billing.events", "CSV SETTINGS max_threads = 1", "x'"):
        assert (
            await client.get("/", params={"query": "SELECT 1", "default_format": form})
        ).status == 403
        headers = {"X-ClickHouse-Format": form}
        assert (await client.post("/", data="SELECT 1", headers=headers)).status == 403
    response = await client.get(
        "/", params={"query": "SELECT 1 AS a", "default_format": "JSONEachRow"}
    )
    assert await response.text() == '{"a":1}\n'


async def test_parameters_are_values(client: Client) -> None:
    hostile = "x' OR 1=1; DROP TABLE billing.events --"
    asked = {"query": "SELECT {a:String} AS a FORMAT TSVRaw", "param_a": hostile}
    assert await (await client.get("/", params=asked)).text() == hostile + "\n"
