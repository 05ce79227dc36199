"""Fixtures of the tests that need a real ComfyUI, and of the page a real browser."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from likeness.benchmarks.comfyui import BOTH, ComfyServer
from likeness.benchmarks.page import CLEAR, READY, chromium, program
from likeness.headless.comfyui import Install, NoComfyUI


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One server for all: with pytest-xdist these tests go to one worker (``--dist loadgroup``).

    Without a ComfyUI one test is skipped for all of them, so that the reason is one line and not ninety.
    """
    here = Path(__file__).parent
    ours = [item for item in items if item.path.is_relative_to(here)]
    for item in ours:
        item.add_marker(pytest.mark.xdist_group("comfyui"))
    if not ours:
        return
    try:
        Install.find()
    except NoComfyUI as missing:
        ours[0].add_marker(pytest.mark.skip(reason=f"{len(ours)} tests NOT RUN. {missing}"))
        config.hook.pytest_deselected(items=ours[1:])
        items[:] = [item for item in items if item not in ours[1:]]


@pytest.fixture(scope="session")
def server(comfyui: Install, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A running ComfyUI with this pack, and a probe for what its process has loaded."""
    with ComfyServer(comfyui, tmp_path_factory.mktemp("comfyui"), packs=BOTH) as running:
        look = running.run({"1": {"class_type": "TestProbe", "inputs": {}}})
        running.modules_at_start = set(look.outputs["1"]["modules"])
        yield running


@pytest.fixture
def modules_at_start(server: ComfyServer) -> set[str]:
    """What the server had imported before any node of ours ran."""
    return server.modules_at_start


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium of the system, through playwright."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if program() is None:
        pytest.skip("No Chromium to test the page in: `apt-get update && apt-get install -y chromium`")
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Any, server: ComfyServer) -> Iterator[Any]:
    """ComfyUI's page with an empty graph. ``page.problems`` collects the errors of this pack's scripts."""
    server.post("/api/settings", {"Comfy.TutorialCompleted": True})  # no welcome dialog
    tab = browser.new_page(viewport={"width": 1600, "height": 1000})
    tab.set_default_timeout(180_000)  # a busy machine is slow, not broken
    tab.problems = []
    tab.on("pageerror", lambda error: _note(tab.problems, error))
    tab.goto(server.url)
    tab.wait_for_function(READY, timeout=60_000)
    tab.evaluate(CLEAR)
    yield tab
    tab.close()


def _note(problems: list[str], error: Any) -> None:
    if "/extensions/likeness/" in (error.stack or ""):  # the frontend has errors of its own
        problems.append(f"{error}\n{error.stack}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failure shows the server's log beside it."""
    report = yield
    used = getattr(item, "funcargs", {})
    if report.failed and isinstance(used.get("server"), ComfyServer):
        with contextlib.suppress(OSError):
            report.sections.append(("ComfyUI's log", used["server"].log_tail()))
    return report
