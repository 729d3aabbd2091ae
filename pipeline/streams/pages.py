"""The worker's pages, for probes, people and Prometheus; there from its first moment on."""

from __future__ import annotations

from aiohttp import web

from pipeline.streams.metrics import CONTENT_TYPE
from pipeline.streams.worker import Worker


def application(worker: Worker) -> web.Application:
    """/health, /live, /ready and /metrics."""

    async def health(_: web.Request) -> web.Response:
        return web.json_response(worker.health())

    async def live(_: web.Request) -> web.Response:
        alive = worker.is_live()
        return web.json_response({"live": alive}, status=200 if alive else 503)

    async def ready(_: web.Request) -> web.Response:
        state = worker.progress.state
        return web.json_response({"state": state}, status=200 if state == "running" else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=await worker.scrape(), headers={"Content-Type": CONTENT_TYPE})

    pages = web.Application()
    pages.router.add_get("/health", health)
    pages.router.add_get("/live", live)
    pages.router.add_get("/ready", ready)
    pages.router.add_get("/metrics", metrics)
    return pages
