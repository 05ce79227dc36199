"""What the page's layout editor asks of the server: another draw of a layout. Nothing is kept here.

    POST /likeness/layout {"layout": JSON text, "things": [{"subject", "noun", "aspect"}], "seed": number}
         -> {"layout": JSON text, "report": words}, or {"error": words} with status 400

What comes back goes into the node's widget, so that a workflow never needs this route to run.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from ..core.errors import LikenessError

if TYPE_CHECKING:
    from ..composing.layout import Thing

MAX_BODY_CHARS = 200_000
MAX_ASPECT = 100.0


def redraw(body: str) -> dict[str, str]:
    """Another layout by the rules; locked items stay. LikenessError for a body that asks nothing sensible."""
    from ..composing.editing import redrawn
    from ..composing.layout import Layout

    record = _object(body)
    seed = record.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise LikenessError(f"The seed is {str(seed)[:40]!r}", expected="a whole number from 0 to 2^31 - 1")
    layout = Layout.from_json(str(record.get("layout", "")))
    rows = record.get("things") or []
    things = [_thing(row) for row in rows] if isinstance(rows, list) else []
    if {thing.name for thing in things} != {item.subject for item in layout.items}:
        things = []  # the page knows the cut-outs of other subjects: the boxes' own shapes count
    drawn = redrawn(layout, seed=seed, things=things)
    return {"layout": drawn.layout.to_json(), "report": drawn.in_words()}


def _object(body: str) -> dict[str, Any]:
    try:
        record = json.loads(body) if len(body) <= MAX_BODY_CHARS else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise LikenessError("This asks for no layout", expected='{"layout": ..., "seed": ...}')
    return record


def _thing(row: Any) -> Thing:
    from ..composing.layout import Thing, number_in

    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("subject", "noun")):
        raise LikenessError("A thing has no subject or noun", expected="the cast that the node has shown")
    aspect = number_in(row.get("aspect"), 1 / MAX_ASPECT, MAX_ASPECT, "a thing's aspect")
    return Thing(name=row["subject"], noun=row["noun"], aspect=aspect)


def register() -> None:
    """Add the route to ComfyUI's server, where there is one."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None:
        server.routes.post("/likeness/layout")(_handle)


async def _handle(request: Any) -> Any:
    import asyncio

    from aiohttp import web

    try:
        return web.json_response(await asyncio.to_thread(redraw, await request.text()))
    except LikenessError as error:
        return web.json_response({"error": str(error)}, status=400)
