"""Uvicorn around the application: signals, and the end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import warnings
from typing import Any

import uvicorn

from rfdetr.serving.app import build_app
from rfdetr.serving.service import Service

GRACE = 5.0  # seconds from giving up what is in hand to closing connections


class Server(uvicorn.Server):
    """Uvicorn's, which on SIGTERM or SIGINT stops accepting and waits for what is in hand; what is
    not done within the service's `stop_timeout` is answered with 503.
    """

    def __init__(self, service: Service) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        # One way that is tested, whatever faster parts are installed; no WebSockets.
        plain: dict[str, Any] = {"http": "h11", "loop": "asyncio", "ws": "none"}
        quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False}
        last = round(service.limits.stop_timeout + GRACE)
        headers = [("X-Content-Type-Options", "nosniff")]
        app = build_app(service)
        super().__init__(
            uvicorn.Config(
                app, **plain, **quiet, headers=headers, timeout_graceful_shutdown=last,
                lifespan="off",
            )
        )  # fmt: skip
        self.service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.service.stopping = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.stopping = True
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self.service.limits.stop_timeout, self.service.abandon)
        await super().shutdown(sockets)
        timer.cancel()


def run(service: Service, bound: socket.socket) -> None:
    """Serves until a signal asks for the end."""
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again when all is done
        signal.signal(number, lambda *_: None)
    warnings.simplefilter("ignore")  # of odd files; to show one, Python reads its own source
    Server(service).run([bound])
    service.close()
