"""A study under ComfyUI's own server."""

from __future__ import annotations

import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from likeness.nodes import host, study
from likeness.scoring.study.results import invite
from likeness.scoring.study.site import MAX_BODY_BYTES, Request
from study_maker import make_study


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    plain = host.Plain()
    plain.place(output=tmp_path)
    monkeypatch.setattr(host, "current", plain)
    monkeypatch.setattr(study, "_sites", {})
    make_study(tmp_path / "studies" / "cats")
    yield tmp_path
    for site in study._sites.values():
        site.box.close()


def test_without_a_server_nothing_is_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "server", raising=False)
    study.mount()
    monkeypatch.setitem(sys.modules, "server", ModuleType("server"))  # some other module of that name
    study.mount()


@pytest.mark.parametrize("name", ["none", "..", "", "a/b", "cats\0", "CON"])
def test_a_study_that_is_not_there(name: str) -> None:
    assert study.answer(name, Request(method="GET", path="", headers={})).status == 404


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """aiohttp's server with the routes that ``mount`` adds, as ComfyUI runs it."""
    web = pytest.importorskip(
        "aiohttp.web", reason="THE STUDY WAS NOT TESTED IN COMFYUI'S SERVER: no aiohttp"
    )
    import asyncio

    routes = web.RouteTableDef()
    running = SimpleNamespace(instance=SimpleNamespace(routes=routes))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=running))
    study.mount()
    loop, app = asyncio.new_event_loop(), web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app)
    loop.run_until_complete(runner.setup())
    place = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(place.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/likeness/study"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(runner.cleanup())
    loop.close()


def fetch(url: str, token: str = "", body: bytes | None = None) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as reply:
            data = reply.read()
            return reply.status, json.loads(data) if "json" in reply.headers["Content-Type"] else data
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_vote_over_comfyuis_server(url: str) -> None:
    site = study._site("cats")
    token = invite(site.study, site.box, 1)[0][1]
    assert b"study.js" in fetch(f"{url}/cats/")[1]
    question = fetch(f"{url}/cats/api/session", token)[1]["questions"][0]
    ballot = json.dumps({"question": question["id"], "answer": "yes", "revision": 0}).encode()
    assert fetch(f"{url}/cats/api/ballot", token, ballot) == (
        200,
        {"outcome": "saved", "answer": "yes", "revision": 1},
    )
    assert fetch(f"{url}/cats/picture/{question['pictures'][0]}")[0] == 200
    assert fetch(f"{url}/cats/api/ballot", token, b" " * (MAX_BODY_BYTES + 1))[0] == 413
    assert fetch(f"{url}/dogs/")[0] == 404
    assert len(site.box.all()) == 1
