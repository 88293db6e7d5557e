"""Metrics and health over HTTP, in the service's own event loop: a wedged loop does not answer."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from service.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

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


class HttpServer:
    """Serves `/metrics`, `/livez` and `/readyz`."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Callable[[], Health]) -> None:
        """Listen on nothing yet."""
        self._host, self._port = host, port
        self._registry = registry
        self._health = health
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
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
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})

    async def _livez(self, _: web.Request) -> web.Response:
        health = self._health()
        return web.Response(text=health.why + "\n", status=503 if health.stalled else 200)

    async def _readyz(self, _: web.Request) -> web.Response:
        health = self._health()
        return web.Response(text=health.why + "\n", status=200 if health.ready else 503)
