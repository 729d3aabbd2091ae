"""ClickHouse over TLS: the certificate's authority is told in the DSN, and others are refused."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from pipeline.embedded import ports
from pipeline.reporting import schema
from pipeline.reporting.clickhouse import Store, StoreUnavailable
from pipeline.reporting.http import ReadOnlyHttp


async def test_the_store_speaks_tls_and_believes_only_its_authority(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    other.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    engine = await asyncio.to_thread(Store, f"chdb://{tmp_path}/engine")
    await asyncio.to_thread(schema.apply, engine)
    application = web.Application()
    ReadOnlyHttp(engine).add_pages(application)
    runner = web.AppRunner(application)
    await runner.setup()
    port = ports.free_port()
    dsn = f"https://reader:secret%20word@127.0.0.1:{port}/?ca_cert={tmp_path}"
    try:
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
        store = await asyncio.to_thread(Store, f"{dsn}/authority.pem")
        assert await asyncio.to_thread(store.rows, "SELECT count() FROM billing.events") == [(0,)]
        with pytest.raises(StoreUnavailable) as refused:
            await asyncio.to_thread(Store, f"{dsn}/other.pem")
    finally:
        await runner.cleanup()
        await asyncio.to_thread(engine.close)
    assert "secret" not in str(refused.value)
