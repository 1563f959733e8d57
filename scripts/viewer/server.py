"""The page over HTTP, on loopback only; it can read and nothing else.

What models wrote is hostile: the page never makes markup of it, and its Content-Security-Policy lets nothing
run or load but the page's own files. A page of another origin that a name server points at loopback (DNS
rebinding) is refused by its Host header.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from aiohttp import web

from scripts.viewer.api import Answers, NotFound, metric_words
from scripts.viewer.index import UnknownLine
from scripts.viewer.query import FilterError

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("common.js", "charts.js", "overview.js", "groups.js", "trajectory.js", "main.js")
"""In the order in which they are loaded; `groups.js` is the lists of trajectories too."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SLICE_S = 0.05
"""How long the index is read on before a request gets its turn."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PortInUse(OSError):
    """Another process listens there; the message says what to do."""


def loopback_socket(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1; port 0 takes a free one. Raises PortInUse."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise PortInUse(
            f"port {port} cannot be listened on ({error.strerror}); give another --port, or --port 0 for any "
            "free one"
        ) from error
    return listener


async def serve(answers: Answers, listener: socket.socket) -> None:
    """Answer until cancelled."""
    runner = web.AppRunner(make_app(answers, listener.getsockname()[1]), access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, listener, shutdown_timeout=1.0).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def make_app(answers: Answers, port: int) -> web.Application:
    """The application, for requests to loopback names at `port`."""
    hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
    if port == 80:
        hosts |= {"127.0.0.1", "localhost"}  # a browser leaves the port out

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.host not in hosts:
            response: web.StreamResponse = _error(421, f"host {request.host!r} is none of {sorted(hosts)}")
        else:
            response = await _answer(request, handler)
        response.headers.update(HEADERS)
        return response

    async def keep_reading(_: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(read_on(answers))
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    app = web.Application(middlewares=[guard])
    app.cleanup_ctx.append(keep_reading)
    app.add_routes(_routes(answers))
    return app


async def read_on(answers: Answers, pause_s: float = 1.0) -> None:
    """Keep every run's index up with its files, a slice at a time."""
    while True:
        found = [run.refresh(SLICE_S) for run in answers.runs]
        await asyncio.sleep(0.001 if any(found) else pause_s)


def page(scripts: Iterable[str]) -> str:
    """The page's HTML, with a place for each script."""
    places = "\n".join(f'<script src="/static/{name}" defer></script>' for name in scripts)
    return (STATIC / "page.html").read_text(encoding="utf-8").replace("<!-- scripts -->", places)


def _routes(answers: Answers) -> list[web.RouteDef]:
    busy = asyncio.Lock()  # one such computation at a time: what is kept of the last is not thread-safe

    async def index(_: web.Request) -> web.Response:
        return web.Response(text=page(SCRIPTS), content_type="text/html")

    async def static(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in {*SCRIPTS, "style.css"}:
            return _error(404, f"there is no file {name!r}")
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        return web.Response(text=(STATIC / name).read_text(encoding="utf-8"), content_type=kind)

    async def runs(_: web.Request) -> web.Response:
        return _json(answers.summaries())

    async def words(_: web.Request) -> web.Response:
        async with busy:
            return _json(await asyncio.to_thread(metric_words))

    async def metrics(request: web.Request) -> web.Response:
        run = answers.run(request.match_info["run"])
        return _json(answers.metrics(run, _number("start", request.query.get("start", "0"))))

    async def steps(request: web.Request) -> web.Response:
        return _json(answers.steps(answers.run(request.match_info["run"])))

    async def groups(request: web.Request) -> web.Response:
        run = answers.run(request.match_info["run"])
        step = _number("step", request.query.get("step", ""))
        return _json(answers.groups(run, step, request.query.get("split", "train")))

    async def rows(request: web.Request) -> web.Response:
        run = answers.run(request.match_info["run"])
        # A search through text reads for up to a second: in a thread, nobody else waits for it.
        return _json(await asyncio.to_thread(answers.rows, run, request.query))

    async def trajectory(request: web.Request) -> web.Response:
        run = answers.run(request.match_info["run"])
        return _json(answers.trajectory(run, _number("line", request.match_info["line"])))

    async def advantages(request: web.Request) -> web.Response:
        run = answers.run(request.match_info["run"])
        line = _number("line", request.match_info["line"])
        async with busy:
            return _json(await asyncio.to_thread(answers.advantages, run, line))

    return [
        web.get("/", index),
        web.get("/static/{name}", static),
        web.get("/api/runs", runs),
        web.get("/api/words", words),
        web.get("/api/runs/{run}/metrics", metrics),
        web.get("/api/runs/{run}/steps", steps),
        web.get("/api/runs/{run}/groups", groups),
        web.get("/api/runs/{run}/rows", rows),
        web.get("/api/runs/{run}/trajectories/{line}", trajectory),
        web.get("/api/runs/{run}/advantages/{line}", advantages),
    ]


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (NotFound, UnknownLine) as error:
        return _error(404, str(error))
    except (FilterError, ValueError) as error:
        return _error(400, str(error))
    except web.HTTPException as error:
        return _error(error.status, error.reason)


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise FilterError(f"{name} = {text!r}: expected a number from 0")
    return int(text)


def _json(value: Any) -> web.Response:
    return web.json_response(value, dumps=lambda v: json.dumps(v, separators=(",", ":"), allow_nan=False))


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
