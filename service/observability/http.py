"""Metrics, health and the status page over HTTP, in the service's own event loop: a wedged loop does not answer."""

from __future__ import annotations

import errno
import json
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiohttp import web
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import ALLOWUTF8, UNDERSCORES

from service.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp.typedefs import Handler
    from prometheus_client import CollectorRegistry


class Health(Protocol):
    """The state of the moment."""

    @property
    def ready(self) -> bool:
        """Whether records can be taken."""

    @property
    def stalled(self) -> bool:
        """Whether a restart is called for."""

    @property
    def why(self) -> str:
        """In words."""


# The files of the page by their address.
PAGE: Final = {
    "/": ("index.html", "text/html"),
    "/status.css": ("status.css", "text/css"),
    "/status.js": ("status.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
# Nothing is loaded from elsewhere, nothing runs that is not a file of ours, nobody frames the page.
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class HttpServer:
    """Serves `/metrics`, `/livez`, `/readyz`, the status page and its `/status.json`."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        health: Callable[[], Health],
        status: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Listen on nothing yet.

        Args:
            host: to listen on.
            port: to listen on; 0 for any.
            registry: what `/metrics` shows.
            health: what the probes tell.
            status: what `/status.json` tells.
        """
        self._host, self._port = host, port
        self._registry = registry
        self._health = health
        self._status = status
        app = web.Application()
        app.on_response_prepare.append(_secure)
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/status.json", self._status_json),
                *(web.get(address, _file(*file)) for address, file in PAGE.items()),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> str:
        """Listen; return the address.

        Raises:
            ConfigurationError: the address cannot be had.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            taken = error.errno == errno.EADDRINUSE
            raise ConfigurationError(
                f"Cannot listen on {self._host}:{self._port}: "
                + ("another process does" if taken else error.strerror or "no such address"),
                "Set http.port to a free port, or to 0 for any" if taken else "Correct http.host and http.port",
            ) from error
        host, port = self._runner.addresses[0][:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Close all connections."""
        await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        if isinstance(encode, partial) and encode.keywords.get("escaping") == UNDERSCORES:
            # The same bytes, as no name of ours has anything to escape; but the library would look at each character
            # of each sample's name, for half of the time.
            encode = partial(encode, escaping=ALLOWUTF8)
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})

    async def _livez(self, _: web.Request) -> web.Response:
        health = self._health()
        return web.Response(text=health.why + "\n", status=503 if health.stalled else 200)

    async def _readyz(self, _: web.Request) -> web.Response:
        health = self._health()
        return web.Response(text=health.why + "\n", status=200 if health.ready else 503)

    async def _status_json(self, _: web.Request) -> web.Response:
        return web.json_response(self._status(), dumps=partial(json.dumps, allow_nan=False))


async def _secure(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _file(name: str, content_type: str) -> Handler:
    content = resources.files("service.observability").joinpath("status_page", name).read_bytes()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=content, content_type=content_type, charset="utf-8")

    return answer
