"""A study's site on the standard library's HTTP server: a thread for each connection, nothing to install."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from ..core.errors import LikenessError
from ..scoring.study.site import MAX_BODY_BYTES, Request, Response, Site

log = logging.getLogger(__name__)

IDLE_S = 30.0  # a connection that says nothing for so long is closed


class StudyServer(ThreadingHTTPServer):
    """Answers from a ``Site``."""

    daemon_threads = True  # an idle browser does not hold up a stop: what it was told is saved is on disk
    request_queue_size = 64

    def __init__(self, site: Site, address: str, port: int) -> None:
        self.site = site
        super().__init__((address, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("A connection broke off", exc_info=True)  # a phone that left: no news


class Handler(BaseHTTPRequestHandler):
    """Reads one request with limits, and writes the site's answer."""

    protocol_version = "HTTP/1.1"
    server_version = "Likeness"
    sys_version = ""
    timeout = IDLE_S
    server: StudyServer

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True  # what follows was not read
            status = 413 if length.isdigit() else 411
            self.send_error(status, explain=f"A ballot has a length, of at most {MAX_BODY_BYTES} bytes.")
            return
        self._answer(self.rfile.read(int(length)))

    def _answer(self, body: bytes) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        path = urlsplit(self.path).path.lstrip("/")
        self._write(
            self.server.site.answer(Request(method=self.command, path=path, headers=headers, body=body))
        )

    def _write(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        self.wfile.write(response.body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


@contextmanager
def serving(site: Site, address: str, port: int) -> Iterator[str]:
    """The site, served from a thread while the block runs; its URL. LikenessError when the port is taken."""
    try:
        server = StudyServer(site, address, port)
    except (OSError, OverflowError) as error:
        raise LikenessError(
            f"The study cannot be served at {address}:{port}: {error}",
            fix="Choose another --port or --listen",
        ) from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
