"""Studies under ComfyUI's own server: output/studies/NAME/study.json at /likeness/study/NAME/.

The same site as ``likeness study serve``. Whoever can open it can open all of ComfyUI: for raters from
elsewhere serve it alone.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import LikenessError
from . import host

if TYPE_CHECKING:
    from ..scoring.study.site import Response, Site

log = logging.getLogger(__name__)

FILE = "study.json"
_sites: dict[Path, Site] = {}
_lock = threading.Lock()


def mount() -> None:
    """Add the routes to ComfyUI's server, where there is one. Costs nothing until somebody calls."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None:
        server.routes.route("*", "/likeness/study/{name}/{path:.*}")(_handle)


async def _handle(request: Any) -> Any:
    """One aiohttp request. Disks are waited for in a thread, so that ComfyUI's loop goes on."""
    from aiohttp import web

    from ..scoring.study.site import MAX_BODY_BYTES, Request

    name, path = request.match_info["name"], request.match_info["path"]
    body = await request.content.read(MAX_BODY_BYTES + 1)  # one more than is allowed is enough to refuse it
    while len(body) <= MAX_BODY_BYTES and not request.content.at_eof():
        body += await request.content.read(MAX_BODY_BYTES + 1)
    headers = {key.lower(): value for key, value in request.headers.items()}
    told = Request(method=request.method, path=path, headers=headers, body=body)
    reply = await asyncio.to_thread(answer, name, told)
    kind = {"Content-Type": reply.content_type}
    return web.Response(status=reply.status, body=reply.body, headers={**reply.headers, **kind})


def answer(name: str, request: Any) -> Response:
    """The answer of the study of that name below the output folder."""
    from ..scoring.study.site import Response

    try:
        return _site(name).answer(request)
    except LikenessError as error:
        log.warning("%s", error)
        return Response(status=404, body=b'{"error": "There is no such study here."}')


def _site(name: str) -> Site:
    """Opened at its first call, and kept."""
    from ..core.paths import inside, safe_name
    from ..scoring.study.site import Site

    folder = inside(host.current.output / "studies", safe_name(name, what="study"), what="study")
    with _lock:
        if folder not in _sites:
            _sites[folder] = Site.open(folder / FILE)
        return _sites[folder]
